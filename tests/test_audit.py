# SPDX-License-Identifier: LGPL-2.1-or-later
"""The slow look at everything, for what was lost without an event."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from storaged_conn.core.model import Foreign, Lifetime, Present
from storaged_conn.daemon import _Parts
from storaged_conn.errors import UnreachableError
from storaged_conn.manager import Client, Manager
from tests.fakes import FakeDriver, FakeStore, News

CLIENT = Client(0, dict.fromkeys(Lifetime, "scope"))


class Stage:
    """A manager without any source: it hears of nothing."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.driver, self.news = FakeDriver(), News()
        self.manager = Manager([self.driver], [], FakeStore(), tasks.create_task)
        self.manager.listen(self.news)
        self.manager.start([])

    async def connected(self, cid: str, reconnects: int = 0) -> None:
        def is_so() -> bool:
            view = self.manager.view(cid)
            assert view
            assert view.runner
            reached = (view.runner.state, view.runner.machine.reconnects)
            return reached == ("connected", reconnects)

        await self.news.until(is_so)

    def lose(self) -> None:
        """Lose everything, and tell nobody."""
        self.driver.kernel.clear()


class Nobody:
    """Has nothing to tell the bus or systemd."""

    def announce(self) -> None: ...
    def ready(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with asyncio.TaskGroup() as tasks:
        stage = Stage(tasks)
        yield stage
        stage.manager.stop()


def parts_of(stage: Stage, audit: float) -> _Parts:
    nobody: Any = Nobody()
    return _Parts(stage.manager, nobody, nobody, nobody, nobody, audit)


async def test_what_was_lost_without_an_event_is_found_by_an_audit(stage: Stage) -> None:
    for cid in ("a", "b"):
        await stage.manager.manage(f"fake:{cid}", cid, {}, CLIENT)
        await stage.connected(cid)
    stage.lose()
    stage.manager.audit()
    for cid in ("a", "b"):
        await stage.connected(cid, reconnects=1)


async def test_what_came_without_an_event_is_found_by_an_audit(stage: Stage) -> None:
    stage.driver.failures.append(UnreachableError("not yet"))
    await stage.manager.manage("fake:a", "a", {}, CLIENT)
    await stage.news.until(lambda: "waiting" in stage.manager.count())
    stage.driver.kernel["fake:a"] = Present("fake-a", ours=True)
    stage.driver.foreigners.append(Foreign("fake:x", Present("fake-x", ours=False)))
    stage.manager.audit()
    await stage.connected("a")
    await stage.news.until(lambda: "added unmanaged/fake-x" in stage.news.heard)
    assert [what for what, _ in stage.driver.calls] == ["connect"]


async def test_an_audit_is_no_reason_to_try(stage: Stage) -> None:
    stage.driver.failures.append(UnreachableError("not yet"))
    await stage.manager.manage("fake:a", "a", {}, CLIENT)
    await stage.news.until(lambda: "waiting" in stage.manager.count())
    stage.manager.audit()
    for _ in range(10):
        await asyncio.sleep(0)
    assert [what for what, _ in stage.driver.calls] == ["connect"]


async def test_audits_come_again_and_again(stage: Stage) -> None:
    await stage.manager.manage("fake:a", "a", {}, CLIENT)
    await stage.connected("a")
    parts = parts_of(stage, 0.01)
    parts.announce()
    for times in range(1, 4):
        stage.lose()
        await stage.connected("a", reconnects=times)
    parts.close()
    assert parts._audit
    assert parts._audit.cancelled()


async def test_without_an_interval_there_are_none(stage: Stage) -> None:
    parts = parts_of(stage, 0)
    parts.announce()
    assert parts._audit is None
    parts.close()
