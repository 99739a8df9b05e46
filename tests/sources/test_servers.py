# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storaged_conn.config import Keepalive
from storaged_conn.core.model import Topic
from storaged_conn.errors import ERROR_PREFIX
from storaged_conn.sources.servers import KIND, PORTAL, ServerSource
from storaged_conn.system.servers import Servers
from tests.caller import serving
from tests.sources.looks import Looks
from tests.system.ports import FakeRoutes, Port

REFUSED = f"{ERROR_PREFIX}ServerRefused"


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    async with Port() as port:
        yield port


async def test_a_server_is_watched_while_somebody_cares_and_its_news_are_told(port: Port) -> None:
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: object) -> asyncio.Task[None]:
        assert asyncio.iscoroutine(work)
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    source, looks = ServerSource(Servers(FakeRoutes(), Keepalive(), spawn)), Looks()
    topic, other = Topic(KIND, port.address.text), Topic("mount", "/mnt")
    source.start(looks, looks.resync)
    source.watch(other)
    source.unwatch(other)
    assert tasks == []
    source.watch(topic)
    assert await looks.of(*topic) is True
    await port.kill()
    assert await looks.of(*topic) is True
    await port.open()
    assert await looks.of(*topic) is True
    source.unwatch(topic)
    await asyncio.wait(tasks)
    source.watch(topic)
    source.close()
    await asyncio.wait(tasks)
    assert len(tasks) == 2
    assert looks.resyncs == 0


async def test_a_portal_is_told_as_what_it_is(port: Port) -> None:
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: object) -> asyncio.Task[None]:
        assert asyncio.iscoroutine(work)
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    source, looks = ServerSource(Servers(FakeRoutes(), Keepalive(), spawn)), Looks()
    topic = Topic(PORTAL, port.address.text)
    source.start(looks, looks.resync)
    source.watch(topic)
    assert await looks.of(*topic) is True
    assert {one for one, _ in looks.heard} <= {topic}
    source.unwatch(topic)
    source.close()
    await asyncio.wait(tasks)


@pytest.mark.bus
class TestTheService:
    async def test_it_loses_and_regains_what_is_on_a_server(
        self, tmp_path: Path, port: Port
    ) -> None:
        uris = {f"c{one}": f"simulated://{port.address.text}/{one}" for one in range(20)}
        async with serving(tmp_path) as service:
            caller = service.caller
            for cid, uri in uris.items():
                await caller.manage(uri, cid)
            for cid in uris:
                await caller.until(cid, State="connected")
            assert port.accepts == 1
            await port.kill()
            for cid in uris:
                await caller.hears_change(cid, State="waiting")
                await caller.until(cid, StateReason="server-refused", LastErrorName=REFUSED)
            await port.open()
            for cid in uris:
                await caller.until(cid, State="connected", Reconnects=1)
            assert port.accepts == 2

    async def test_validation_asks_the_server(self, tmp_path: Path, port: Port) -> None:
        uri = f"simulated://{port.address.text}/a"
        async with serving(tmp_path) as service:
            (verdict,) = await service.caller.call("Validate", "sa{sv}", uri, {})
            assert verdict == {"uri": uri, "ok": True}
            await port.kill()
            (verdict,) = await service.caller.call("Validate", "sa{sv}", uri, {})
            assert (verdict["ok"], verdict["reason"]) == (False, "server-refused")

    async def test_it_stops_in_the_middle_of_an_attempt(self, tmp_path: Path, port: Port) -> None:
        async with serving(tmp_path) as service:
            uri = f"simulated://{port.address.text}/a"
            await service.caller.manage(uri, "a", latency_ms=3_600_000)
            await port.has_accepted(1)
            assert await service.daemon.stop() == 0
            assert "Traceback" not in service.daemon.log
