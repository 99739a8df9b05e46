# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real rtnetlink, in a network of its own."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing

import pytest
from pyroute2.netlink.rtnl import RTM_NEWLINK, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from storaged_conn.core.model import Topic
from storaged_conn.sources.routes import BATCH, FIRST_PAUSE, LONGEST_PAUSE, RouteSource
from storaged_conn.system.servers import Servers
from tests.netns import Namespace, needs_root
from tests.sources.looks import Looks
from tests.system.cable import ADDRESSES, cable, plug
from tests.system.ports import News, turns

pytestmark = [needs_root, pytest.mark.root]

MANY = 2000
AF_BRIDGE = 7
"""Source: bits/socket.h; the module socket does not have it."""


class FakeServers(Servers, News):
    """Remembers what it is told.

    Attributes:
        rechecks: how often it was to look at all ways.
        seen: the hosts of which it heard, in order.
    """

    def __init__(self) -> None:
        News.__init__(self)
        self.listeners = []
        self.rechecks = 0
        self.seen: list[str] = []

    def any_down(self) -> bool:
        return True

    async def looks(self, wanted: int) -> None:
        await self.until(lambda: self.rechecks >= wanted)

    def recheck(self) -> None:
        self.rechecks += 1
        self.tell()

    def neighbour(self, address: str) -> None:
        self.seen.append(address)
        self.tell()


class CountingSource(RouteSource):
    """Counts how often the loop calls it."""

    calls = 0

    def _read(self) -> None:
        self.calls += 1
        super()._read()


class World:
    """A source, a network of its own, and what it says."""

    def __init__(self, space: Namespace, **options: int) -> None:
        self.space = space
        self.servers, self.looks = FakeServers(), Looks()
        self.source = CountingSource(self.servers, **options)
        with space.entered():
            self.source.start(self.looks, self.looks.resync)
        self.start = asyncio.get_running_loop().time()

    @property
    def most(self) -> float:
        """How often it may have looked until now."""
        elapsed = asyncio.get_running_loop().time() - self.start
        return 1 + LONGEST_PAUSE / FIRST_PAUSE + elapsed / LONGEST_PAUSE

    async def rests(self) -> None:
        """Wait until nothing is left to do."""
        async with asyncio.timeout(20):
            while self.source._timer:
                await asyncio.sleep(self.source._timer.when() - asyncio.get_running_loop().time())
                await turns()


@pytest.fixture
def space() -> Iterator[Namespace]:
    """Give a network in which nothing more comes by itself."""
    with cable() as space:
        plug(space, *ADDRESSES)
        yield space


@pytest.fixture
async def world(space: Namespace) -> AsyncIterator[World]:
    async with made(space) as world:
        yield world


@asynccontextmanager
async def made(space: Namespace, **options: int) -> AsyncIterator[World]:
    world = World(space, **options)
    try:
        yield world
    finally:
        world.source.close()
        world.source.close()


def routes(verb: str, number: int) -> list[str]:
    hosts = (f"10.0.{one // 256}.{one % 256}" for one in range(number))
    return [f"route {verb} {host}/32 dev here" for host in hosts]


@pytest.mark.parametrize(
    "command",
    [
        "link add another type bridge",
        "link set here down",
        "address add 192.0.2.2/24 dev here",
        "address del fd00::1/64 dev here",
        "route add default via 192.0.2.254",
        "route add blackhole 2001:db8::/32",
    ],
)
async def test_the_first_change_is_looked_at_at_once(world: World, command: str) -> None:
    assert world.servers.rechecks == 0
    world.space.ip(command)
    await turns(3)
    assert world.servers.rechecks == 1
    assert world.looks.resyncs == 0
    assert world.looks.heard == []


async def test_a_burst_is_looked_at_a_few_times_and_its_end_is_never_missed(world: World) -> None:
    for times, verb in enumerate(("add", "del"), 2):
        await asyncio.to_thread(world.space.ip, *routes(verb, MANY))
        before = world.servers.rechecks
        assert 2 <= before <= world.most
        world.space.ip(f"address add 192.0.2.{times}/24 dev here")
        await world.servers.looks(before + 1)
    await world.rests()
    assert world.servers.rechecks <= world.most
    assert world.looks.resyncs == 0


async def test_after_a_rest_the_next_change_is_looked_at_at_once_again(world: World) -> None:
    world.space.ip(*routes("add", 3))
    await turns(3)
    await world.rests()
    before = world.servers.rechecks
    world.space.ip("link set here down")
    await turns(3)
    assert world.servers.rechecks == before + 1
    assert world.source._pause == FIRST_PAUSE


async def test_one_turn_of_the_loop_takes_a_part_of_a_burst(world: World) -> None:
    world.space.ip(*routes("add", 5 * BATCH))
    await turns(30)
    assert world.source.calls >= 5


async def test_only_the_kernel_is_believed(world: World) -> None:
    link, neighbour = ifinfmsg(), ndmsg()
    link["header"]["type"], neighbour["header"]["type"] = RTM_NEWLINK, RTM_NEWNEIGH
    neighbour["family"], neighbour["state"] = socket.AF_INET, 2
    neighbour["attrs"] = [("NDA_DST", "192.0.2.9")]
    assert world.source._socket is not None
    port, _ = world.source._socket.getsockname()
    with world.space.entered():
        forger = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    with forger:
        for message in (link, neighbour):
            message.encode()
            assert forger.sendto(message.data, (port, 0)) == len(message.data)
    await turns()
    assert world.source.calls > 0  # it was read
    assert (world.servers.rechecks, world.servers.seen) == (0, [])
    world.space.ip("link set here down")
    await world.servers.looks(1)


async def test_what_cannot_be_read_is_a_resync(world: World) -> None:
    half_a_neighbour = bytes([20, 0, 0, 0, 28]) + bytes(15)
    world.source._take(half_a_neighbour)
    assert (world.servers.rechecks, world.looks.resyncs) == (1, 1)


async def test_what_was_lost_is_looked_up_and_the_source_goes_on(space: Namespace) -> None:
    async with made(space, buffer=1) as world:
        for times, verb in enumerate(("add", "del"), 1):
            space.ip(*routes(verb, 200))  # meanwhile nobody reads
            await turns(3)
            assert world.looks.resyncs == times
            await world.rests()
        space.ip("neighbour add 192.0.2.9 lladdr 02:00:00:00:00:01 dev here nud reachable")
        await world.servers.until(lambda: world.servers.seen)
        assert world.looks.resyncs == times


async def test_a_flood_into_a_small_buffer_is_no_busy_loop(space: Namespace) -> None:
    async with made(space, buffer=1) as world:
        for _ in range(10):
            space.ip(*routes("add", 100), *routes("del", 100))  # meanwhile nobody reads
            await turns(3)
        await world.rests()
        assert 1 <= world.looks.resyncs <= world.servers.rechecks <= world.most
        calls = world.source.calls
        await turns(100)
        assert world.source.calls == calls


@pytest.mark.parametrize("host", ["192.0.2.9", "fd00::9"])
async def test_a_host_that_answers_is_told_of_and_no_look_at_all_ways(
    world: World, host: str
) -> None:
    at = f"{host} lladdr 02:00:00:00:00:01 dev here nud"
    world.space.ip(f"neighbour add {at} failed", f"neighbour replace {at} permanent")
    await turns(3)
    assert world.servers.seen == []
    for state in ("reachable", "stale"):  # stale: it has asked for us
        world.space.ip(f"neighbour replace {at} {state}")
        await world.servers.until(lambda: world.servers.seen)
        assert world.servers.seen.pop() == host
    world.space.ip(f"neighbour del {host} dev here")
    await turns(5)
    assert (world.servers.rechecks, world.servers.seen) == (0, [])


async def test_what_a_bridge_learns_is_no_host(world: World) -> None:
    learnt = ndmsg()
    learnt["header"]["type"], learnt["family"], learnt["state"] = RTM_NEWNEIGH, AF_BRIDGE, 2
    learnt["attrs"] = [("NDA_LLADDR", "02:00:00:00:00:01")]
    learnt.encode()
    world.source._take(bytes(learnt.data))
    assert (world.servers.rechecks, world.servers.seen) == (0, [])


async def test_nothing_is_heard_of_other_networks(world: World) -> None:
    with closing(Namespace()) as other:
        other.ip("link set lo up")
        await turns()
    assert world.source.calls == 0


async def test_topics_do_not_matter(world: World) -> None:
    world.source.watch(Topic("server", "nas:1"))
    world.source.unwatch(Topic("server", "nas:1"))
    assert world.servers.rechecks == 0


async def test_a_closed_source_leaves_nothing_and_says_nothing(space: Namespace) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with made(space) as world:
        space.ip("link set here down", "link set here up")
        await turns(3)
        assert world.source._timer
    assert len(os.listdir("/proc/self/fd")) == before
    heard = world.servers.rechecks
    space.ip("link set here down")
    assert world.source._timer.cancelled()
    assert world.servers.rechecks == heard
