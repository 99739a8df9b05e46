# SPDX-License-Identifier: LGPL-2.1-or-later
"""Probes of a file system that answers as it is told, or is as silent as a dead server."""

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from storaged_conn.system.mountinfo import Mount
from storaged_conn.system.probe import AT_ONCE, MAX_STUCK, PATIENCE, Probes, Verdict, look
from tests.conftest import children
from tests.fuse import Silence, silence
from tests.live import DEADLINE
from tests.mounts import needs_root, table

pytestmark = [needs_root, pytest.mark.root]


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Silence]:
    with silence(tmp_path / "storage") as storage:
        yield storage


@pytest.fixture
async def probes() -> AsyncIterator[Probes]:
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        yield Probes(tasks.create_task)


def mount_of(storage: Silence) -> Mount:
    mount = table().at(str(storage.place))
    assert mount
    return mount


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (0, Verdict.ANSWERS),
        (errno.EACCES, Verdict.ANSWERS),
        (errno.EPERM, Verdict.ANSWERS),
        (errno.ESTALE, Verdict.STALE),
        (errno.EIO, Verdict.SILENT),
        (errno.ETIMEDOUT, Verdict.SILENT),
        (errno.ENOENT, None),
    ],
)
async def test_the_root_says_how_it_is(
    storage: Silence, answer: int, verdict: Verdict | None
) -> None:
    storage.answer = answer
    assert await look(mount_of(storage)) is verdict
    assert storage.asked.is_set()


async def test_another_mount_in_its_place_says_nothing(storage: Silence) -> None:
    assert await look(replace(mount_of(storage), device="0:1")) is None


async def test_silence_is_told_in_time_by_one_child_and_the_next_probe_is_a_new_one(
    storage: Silence, probes: Probes
) -> None:
    storage.answer = None
    mount, before = mount_of(storage), children()
    asking = [asyncio.create_task(probes.ask(mount)) for _ in range(3)]
    await storage.asked.wait()
    assert len(children() - before) == 1
    begun = asyncio.get_running_loop().time()
    assert await asyncio.gather(*asking) == [Verdict.SILENT] * 3
    assert asyncio.get_running_loop().time() - begun < PATIENCE + 1
    storage.speak(0)
    assert await probes.ask(mount) is Verdict.ANSWERS
    assert children() == before


async def test_an_answer_that_comes_late_is_told_at_once(storage: Silence, probes: Probes) -> None:
    storage.answer = None
    asking = asyncio.create_task(probes.ask(mount_of(storage)))
    await storage.asked.wait()
    storage.speak(0)
    assert await asking is Verdict.ANSWERS


async def test_who_gives_up_waiting_leaves_the_probe_to_the_next(
    storage: Silence, probes: Probes
) -> None:
    storage.answer = None
    mount, before = mount_of(storage), children()
    asking = asyncio.create_task(probes.ask(mount))
    await storage.asked.wait()
    asking.cancel()
    await asyncio.wait({asking})
    again = asyncio.create_task(probes.ask(mount))
    storage.speak(errno.ESTALE)
    assert await again is Verdict.STALE
    assert children() == before


async def test_no_more_are_started_when_many_could_not_be_killed(
    storage: Silence, probes: Probes
) -> None:
    stuck = asyncio.get_running_loop().create_future()
    probes._running = dict.fromkeys(range(AT_ONCE + MAX_STUCK), stuck)
    assert await probes.ask(mount_of(storage)) is None
    assert not storage.asked.is_set()
