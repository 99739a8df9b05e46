# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import pytest

from storaged_conn.config import Keepalive
from storaged_conn.errors import (
    AttemptError,
    NameResolutionError,
    NoNetworkError,
    ServerRefusedError,
    UnreachableError,
)
from storaged_conn.system.routes import Route
from storaged_conn.system.sentinel import Address
from storaged_conn.system.servers import AT_ONCE, SLICE, Servers
from tests.system.ports import (
    DEADLINE,
    HOST,
    FakeRoutes,
    News,
    Port,
    connection_to,
    open_files,
    silent_port,
    soon,
    turns,
)


class World(News):
    """All servers, and what they tell.

    Attributes:
        told: each server with the type of its error, or None, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.routes = FakeRoutes()
        self.tasks: list[asyncio.Task[None]] = []
        self.told: list[tuple[Address, type[AttemptError] | None]] = []
        self.servers = Servers(self.routes, Keepalive(), self._spawn)
        self.servers.listeners.append(self._hear)

    async def hears(self, address: Address, error: type[AttemptError] | None) -> None:
        """Wait until this is told, and forget what was told until then."""
        await self.until(lambda: (address, error) in self.told)
        del self.told[: self.told.index((address, error)) + 1]

    async def settled(self) -> None:
        """Wait until all that was let go has ended."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=DEADLINE)
        assert all(task.cancelled() for task in self.tasks)

    def _spawn(self, work: object) -> asyncio.Task[None]:
        assert asyncio.iscoroutine(work)
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def _hear(self, address: Address) -> None:
        error = self.servers.failure(address)
        self.told.append((address, type(error) if error else None))
        self.tell()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    world.servers.close()
    await world.settled()


# watching


async def test_many_who_need_a_server_share_one_connection(world: World, port: Port) -> None:
    for _ in range(50):
        world.servers.watch(port.address)
    await world.hears(port.address, None)
    async with world.servers.reach(port.address):
        assert len(world.tasks) == port.accepts == 1
    for _ in range(49):
        world.servers.unwatch(port.address)
    await turns()
    assert not world.tasks[0].done()
    world.servers.unwatch(port.address)
    await world.settled()
    await turns()
    assert port.accepts == 1
    assert world.told == []


async def test_what_is_let_go_leaves_nothing_whatever_it_was_doing(world: World) -> None:
    async with Port() as port, Port() as dead:
        await dead.kill()
        with silent_port() as (silent, _):
            world.routes.ways["192.0.2.1"] = NoNetworkError("no route")
            before = open_files()
            addresses = [port.address, dead.address, silent, Address("192.0.2.1", 1)]
            for address in addresses:
                world.servers.watch(address)
            await world.hears(silent, UnreachableError)
            for address in addresses:
                world.servers.unwatch(address)
            await world.settled()
            await soon(lambda: open_files() <= before)


async def test_what_a_server_does_is_told(world: World, port: Port) -> None:
    world.servers.watch(port.address)
    assert world.servers.failure(port.address) is None
    await world.hears(port.address, None)
    await port.kill()
    await world.hears(port.address, ServerRefusedError)
    assert isinstance(world.servers.failure(port.address), ServerRefusedError)
    await port.open()
    await world.hears(port.address, None)
    assert world.servers.failure(port.address) is None
    assert world.told == []


async def test_a_server_that_nobody_watches_has_no_failure(world: World) -> None:
    assert world.servers.failure(Address("nas", 1)) is None


async def test_to_let_go_after_the_end_is_no_trouble(world: World, port: Port) -> None:
    world.servers.watch(port.address)
    world.servers.close()
    world.servers.unwatch(port.address)
    await world.settled()


# reaching


async def test_who_reaches_a_server_waits_for_its_first_verdict(world: World, port: Port) -> None:
    async with world.servers.reach(port.address) as answers_at:
        assert answers_at == HOST
        assert len(world.tasks) == 1
    await world.settled()


async def test_who_cannot_reach_a_server_learns_why(world: World, port: Port) -> None:
    await port.kill()
    with pytest.raises(ServerRefusedError, match=f"{HOST}:{port.port}: nothing answers"):
        async with world.servers.reach(port.address):
            raise AssertionError
    await world.settled()
    world.routes.take(HOST)
    with pytest.raises(NoNetworkError):
        async with world.servers.reach(port.address):
            raise AssertionError
    await world.settled()


async def test_a_name_that_is_none_is_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: str) -> list[str]:
        raise NameResolutionError("unknown")

    monkeypatch.setattr("storaged_conn.system.sentinel.resolve", fail)
    with pytest.raises(NameResolutionError, match=r"^unknown$"):
        async with world.servers.reach(Address("name.invalid", 1)):
            raise AssertionError
    await world.settled()


async def test_what_goes_wrong_meanwhile_is_not_the_servers_fault(world: World, port: Port) -> None:
    with pytest.raises(ZeroDivisionError):
        async with world.servers.reach(port.address):
            raise ZeroDivisionError
    await world.settled()


async def test_who_gives_up_waiting_lets_go(world: World) -> None:
    with silent_port() as (silent, _):
        waiting = asyncio.create_task(world.servers.reach(silent).__aenter__())
        await turns()
        waiting.cancel()
        await asyncio.wait([waiting])
        await world.settled()
        assert len(world.tasks) == 1


async def test_few_connect_at_one_server_at_once_and_all_at_another(world: World) -> None:
    async with Port() as port, Port() as other, AsyncExitStack() as held:
        for _ in range(AT_ONCE):
            await held.enter_async_context(world.servers.reach(port.address))
        late = [asyncio.create_task(enter(world, port)) for _ in range(3)]
        await turns()
        assert not any(task.done() for task in late)
        async with world.servers.reach(other.address):
            pass
        await held.aclose()
        await asyncio.wait_for(asyncio.gather(*late), DEADLINE)
    await world.settled()


async def enter(world: World, port: Port) -> None:
    async with world.servers.reach(port.address):
        pass


async def test_who_waits_for_a_place_learns_that_the_server_has_gone(
    world: World, port: Port
) -> None:
    async with AsyncExitStack() as held:
        for _ in range(AT_ONCE):
            await held.enter_async_context(world.servers.reach(port.address))
        late = [asyncio.create_task(enter(world, port)) for _ in range(3)]
        await turns()
        await port.kill()
        await world.hears(port.address, ServerRefusedError)
        await held.aclose()
        for task in late:
            with pytest.raises(ServerRefusedError):
                await task
    await world.settled()


async def test_who_is_connecting_at_the_end_ends_without_trouble(world: World, port: Port) -> None:
    async def stay() -> None:
        async with world.servers.reach(port.address):
            entered.set()
            await asyncio.get_running_loop().create_future()

    entered = asyncio.Event()
    task = asyncio.create_task(stay())
    await entered.wait()
    world.servers.close()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.settled()


# the network


async def test_a_look_finds_those_whose_way_is_lost_or_back(world: World) -> None:
    async with Port() as one, Port("127.0.0.78") as other:
        for port in (one, other):
            world.servers.watch(port.address)
            await world.hears(port.address, None)
        await turns()
        world.routes.take(one.host)
        world.servers.recheck()
        assert world.told == [(one.address, NoNetworkError)]  # before anything is awaited
        await turns()
        world.routes.ways.clear()
        world.servers.recheck()
        await world.hears(one.address, None)
        assert world.told == []
        assert other.accepts == 1


async def test_many_are_looked_at_in_turns_those_that_answer_first(world: World) -> None:
    many = [Address(f"192.0.2.{number}", 1) for number in range(3 * SLICE)]
    async with Port() as port:
        for address in many:
            world.routes.take(address.host)
            world.servers.watch(address)
        world.servers.watch(port.address)
        await world.hears(port.address, None)
        await turns()
        world.routes.asked.clear()
        world.servers.recheck()
        assert len(world.routes.asked) == SLICE
        assert world.routes.asked[0] == HOST
        world.servers.recheck()  # it has begun, but not seen what is new: another one follows
        world.routes.asked.clear()
        await turns()
        asked = Counter(world.routes.asked)
        assert set(asked) == {HOST, *(one.host for one in many)}
        assert sum(asked.values()) == 2 * len(asked) - SLICE
        assert max(asked.values()) == 2


async def test_a_host_that_appears_is_told_to_those_who_wait_for_it(world: World) -> None:
    with silent_port() as (silent, server):
        world.servers.watch(silent)
        await world.hears(silent, UnreachableError)
        asked = len(world.routes.asked)
        server.accept()[0].close()
        world.servers.neighbour("127.0.0.1")
        world.servers.neighbour(HOST)
        await world.hears(silent, None)
        assert len(world.routes.asked) == asked + 1


async def test_after_a_sleep_all_connections_are_made_anew_at_once(world: World) -> None:
    async with Port() as port, Port("127.0.0.78") as lost:
        world.routes.take(lost.host)
        for one in (port, lost):
            world.servers.watch(one.address)
        await world.hears(port.address, None)
        await port.has_accepted(1)
        await turns()
        world.routes.ways[lost.host] = Route("lo", "127.0.0.1", "")
        world.told.clear()
        world.servers.retry()
        await port.has_accepted(2)
        await world.hears(lost.address, None)
        assert world.told == []


# portals


async def test_a_portal_is_let_go_at_once_and_asked_anew_each_time(
    world: World, port: Port
) -> None:
    world.servers.watch(port.address, holds=False)
    await world.hears(port.address, None)
    for times in range(2, 5):
        async with world.servers.reach(port.address, holds=False) as address:
            assert address == HOST
        await port.has_accepted(times)
    with pytest.raises(AssertionError, match="no connection"):
        connection_to(port.port)
    assert not world.told, "that it still answers is no news"


async def test_a_portal_that_has_gone_is_found_out_by_who_asks_and_its_return_is_news(
    world: World, port: Port
) -> None:
    world.servers.watch(port.address, holds=False)
    await world.hears(port.address, None)
    await port.kill()
    await turns()
    assert not world.told, "nobody asked"
    with pytest.raises(ServerRefusedError):
        async with world.servers.reach(port.address, holds=False):
            pass
    await world.hears(port.address, ServerRefusedError)
    await port.open()
    await world.hears(port.address, None)


async def test_many_who_ask_a_portal_at_once_make_one_connection(world: World, port: Port) -> None:
    world.servers.watch(port.address, holds=False)
    await world.hears(port.address, None)
    async with AsyncExitStack() as stack:
        reach = partial(world.servers.reach, port.address, holds=False)
        await asyncio.gather(*(stack.enter_async_context(reach()) for _ in range(AT_ONCE)))
    assert port.accepts == 2
