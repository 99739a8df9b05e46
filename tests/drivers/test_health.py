# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
from collections.abc import AsyncIterator

import pytest

from storaged_conn.core.model import Topic
from storaged_conn.drivers.health import Health
from storaged_conn.errors import UnreachableError
from storaged_conn.system.mountinfo import Mount, parse
from storaged_conn.system.probe import Probes, Verdict
from storaged_conn.system.sentinel import Address
from tests.drivers.nfs_world import FakeServers
from tests.live import DEADLINE

SERVER = Address("host", 2049)
OTHER = Address("other", 2049)
TOPIC = Topic("mount", "/x")
(MOUNT,) = parse(b"2 1 0:40 / /x rw - nfs4 host:/x rw\n").values()


class FakeProbes(Probes):
    """Gives a verdict when there is one."""

    def __init__(self) -> None:
        self.verdicts: asyncio.Queue[Verdict | None] = asyncio.Queue()
        self.asked = asyncio.Event()

    async def ask(self, mount: Mount) -> Verdict | None:
        self.asked.set()
        return await self.verdicts.get()


class World:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.servers, self.probes = FakeServers(), FakeProbes()
        self.health = Health(self.servers, tasks.create_task)
        self.health._probes = self.probes
        self.news: asyncio.Queue[Topic] = asyncio.Queue()
        self.health.news = self.news.put_nowait

    async def ask(self, *verdict: Verdict | None) -> Verdict | None:
        for one in verdict:
            self.probes.verdicts.put_nowait(one)
        return await self.health.ask(MOUNT, SERVER, TOPIC)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        yield World(tasks)


async def test_what_answers_is_not_asked_again(world: World) -> None:
    assert await world.ask(Verdict.ANSWERS) is Verdict.ANSWERS
    assert not world.health._due


async def test_of_a_server_that_is_down_the_mount_is_not_asked(world: World) -> None:
    world.servers.go_down(SERVER)
    assert await world.ask() is Verdict.SILENT
    assert not world.probes.asked.is_set()
    assert not world.health._due  # its sentinel tells when it is back


async def test_a_server_that_goes_down_ends_the_question_at_once(world: World) -> None:
    asking = asyncio.create_task(world.ask())
    await world.probes.asked.wait()
    world.servers.go_down(OTHER)
    world.servers.go_down(SERVER)
    assert await asking is Verdict.SILENT
    assert not world.health._due


@pytest.mark.parametrize("verdict", [Verdict.SILENT, Verdict.STALE, None])
async def test_what_brings_no_event_is_looked_at_again(
    world: World, verdict: Verdict | None
) -> None:
    assert await world.ask(verdict) is verdict
    assert await world.ask(verdict) is verdict
    assert await world.news.get() == TOPIC
    assert world.news.empty()
    assert await world.ask(Verdict.ANSWERS) is Verdict.ANSWERS


async def test_it_is_looked_at_ever_more_seldom_until_it_answers_or_is_forgotten(
    world: World,
) -> None:
    await world.ask(Verdict.SILENT)
    await world.news.get()
    assert world.health._tries == {TOPIC: 1}
    world.health.forget(TOPIC)
    assert not world.health._tries
    await world.ask(Verdict.SILENT)
    await world.news.get()
    await world.ask(Verdict.ANSWERS)
    assert not world.health._tries


async def test_what_is_done_while_a_server_is_up_is_ended_when_it_goes_down(world: World) -> None:
    async def work() -> None:
        async with world.health.reach(SERVER) as address:
            assert address == "127.0.0.1"
            await asyncio.Event().wait()

    working = [asyncio.create_task(work()) for _ in range(2)]
    await asyncio.sleep(0)
    world.servers.go_down(SERVER)
    for one in working:
        with pytest.raises(UnreachableError, match="gone down"):
            await one
    world.servers.come_back(SERVER)
    async with world.health.while_up(SERVER):
        pass
    world.servers.go_down(SERVER)


async def test_a_server_settles_only_after_it_was_down(world: World) -> None:
    assert not world.health.is_settling(SERVER)
    world.servers.come_back(SERVER)  # its first sign of life
    assert not world.health.is_settling(SERVER)
    world.servers.go_down(SERVER)
    world.servers.come_back(SERVER)
    assert world.health.is_settling(SERVER)
    assert not world.health.is_settling(OTHER)
    world.health._returned[SERVER] -= 31
    assert not world.health.is_settling(SERVER)
