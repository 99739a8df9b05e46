# SPDX-License-Identifier: LGPL-2.1-or-later
from collections.abc import AsyncIterator, Callable

import pytest

from storaged_conn.errors import (
    NameResolutionError,
    NoAddressError,
    NoNetworkError,
    ServerRefusedError,
    UnreachableError,
)
from storaged_conn.system.routes import Route
from storaged_conn.system.sentinel import (
    NO_WAY,
    PATIENCE,
    STAGGER,
    Address,
)
from tests.system.ports import (
    HOST,
    Port,
    silent_port,
    soon,
    turns,
)
from tests.system.watch import EARLY, now, watching

# the network


async def test_a_lost_way_is_a_loss_at_once_and_its_return_too(port: Port) -> None:
    async with watching(port.address) as watch:
        await port.has_accepted(1)
        await watch.says(None)
        for times in (1, 2):
            watch.routes.take(HOST)
            watch.sentinel.recheck()
            assert watch.verdicts == [None, NoNetworkError] * times  # before anything is awaited
            await soon(lambda: watch.sentinel._wait)
            watch.routes.ways.clear()
            began = now()
            watch.sentinel.recheck()
            await watch.says(*[None, NoNetworkError] * times, None)
            assert now() - began < NO_WAY / 2
            await port.has_accepted(times + 1)
            await turns(5)


async def test_while_there_is_no_way_nothing_is_tried(port: Port) -> None:
    async with watching(port.address) as watch:
        errors = (NoNetworkError("no route"), NoAddressError("no address"))
        for number, error in enumerate(errors, 1):
            watch.routes.ways[HOST] = error
            watch.sentinel.recheck()
            watch.sentinel.kick()
            await watch.says(*map(type, errors[:number]))
            await soon(lambda: watch.sentinel._wait and watch.pause() > NO_WAY / 2 - 1)
        assert port.accepts == 0


async def test_a_look_that_finds_nothing_new_does_nothing(port: Port) -> None:
    async with watching(port.address) as watch:
        await port.has_accepted(1)
        await watch.says(None)
        watch.sentinel.recheck()
        await turns(10)
        assert port.accepts == 1
        watch.routes.take(HOST)
        watch.sentinel.recheck()
        await soon(lambda: watch.sentinel._wait)
        before = watch.pause()
        watch.sentinel.recheck()
        await turns(10)
        assert watch.pause() > before - 1
        assert watch.verdicts == [None, NoNetworkError]


async def test_another_way_is_no_news_and_a_new_connection(port: Port) -> None:
    async with watching(port.address) as watch:
        await port.has_accepted(1)
        await watch.says(None)
        await turns(5)
        watch.routes.ways[HOST] = Route("wlan0", "127.0.0.1", "192.0.2.1")
        watch.sentinel.recheck()
        await port.has_accepted(2)
        await watch.says(None)


@pytest.mark.usefixtures("hasty")
async def test_a_host_that_appears_is_tried_at_once_if_it_is_the_server_or_its_gateway() -> None:
    gateway = "192.0.2.1"
    with silent_port() as (address, server):
        async with watching(address) as watch:
            watch.routes.ways[HOST] = Route("eth0", "127.0.0.1", gateway)
            await watch.says(UnreachableError)
            for host, attempts in (("192.0.2.2", 0), (gateway, 1), (HOST, 1)):
                asked = len(watch.routes.asked)
                watch.sentinel.hear_of(host)
                await turns(10)
                assert len(watch.routes.asked) == asked + attempts
            server.accept()[0].close()
            watch.sentinel.hear_of(HOST)
            await watch.says(UnreachableError, None)
            asked = len(watch.routes.asked)
            watch.sentinel.hear_of(HOST)
            await turns(10)
            assert len(watch.routes.asked) == asked


# names


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Port, Port]]:
    """Give a port of both families."""
    async with Port() as four, Port("::1") as six:
        while six.port != four.port:
            await six.kill()
            six.port = four.port
            try:
                await six.open()
            except OSError:  # somebody else has it
                await four.kill()
                four.port = 0
                await four.open()
        yield four, six


async def test_any_address_of_a_server_will_do(
    pair: tuple[Port, Port], lookup: Callable[[object], None]
) -> None:
    lookup([HOST, "::1"])
    for dead, alive in (pair, pair[::-1]):
        await dead.kill()
        async with watching(Address("nas.example", alive.port)) as watch:
            await watch.says(None)
            assert watch.sentinel.answers_at == alive.host
            await alive.kill()
            await watch.says(None, ServerRefusedError)
        await dead.open()
        await alive.open()


async def test_a_silent_address_does_not_delay_the_next_one_for_long(
    lookup: Callable[[object], None],
) -> None:
    with silent_port() as (address, _):
        async with Port("127.0.0.78") as port:
            await port.kill()
            port.port = address.port
            await port.open()
            lookup([HOST, port.host])
            began = now()
            async with watching(Address("nas.example", port.port)) as watch:
                await watch.says(None)
                assert watch.sentinel.answers_at == port.host
                assert STAGGER - EARLY < now() - began < PATIENCE


async def test_an_address_without_a_way_is_left_out(
    port: Port, lookup: Callable[[object], None]
) -> None:
    lookup(["192.0.2.1", HOST])
    async with watching(Address("nas.example", port.port)) as watch:
        watch.routes.take("192.0.2.1")
        await watch.says(None)
        assert watch.sentinel.answers_at == HOST
        watch.routes.take(HOST)
        watch.sentinel.recheck()
        await watch.says(None, NoNetworkError)


@pytest.mark.usefixtures("lazy")
async def test_a_name_without_an_address_is_looked_up_again_after_any_change(
    port: Port, lookup: Callable[[object], None]
) -> None:
    lookup(NameResolutionError("the name nas.example cannot be resolved"))
    async with watching(Address("nas.example", port.port)) as watch:
        await watch.says(NameResolutionError)
        lookup([HOST])
        watch.sentinel.recheck()  # it may have brought the name server back
        await watch.says(NameResolutionError, None)


@pytest.mark.usefixtures("hasty")
async def test_a_look_up_that_takes_long_is_the_reason_itself(
    port: Port, lookup: Callable[[object], None]
) -> None:
    lookup(["127.0.0.78"])
    async with watching(Address("nas.example", port.port)) as watch:
        await watch.says(ServerRefusedError)
        lookup(None)
        await watch.says(ServerRefusedError, NameResolutionError)
        lookup([HOST])
        watch.sentinel.kick()
        await watch.says(ServerRefusedError, NameResolutionError, None)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("trouble", [NameResolutionError("unknown"), None], ids=["error", "silent"])
async def test_what_becomes_of_its_name_does_not_matter_to_a_server_that_answers(
    port: Port, lookup: Callable[[object], None], trouble: object
) -> None:
    lookup([HOST])
    async with watching(Address("nas.example", port.port)) as watch:
        await port.has_accepted(1)
        lookup(trouble)
        await port.part()
        await port.has_accepted(2)
        await watch.says(None)
        await port.kill()
        await watch.until(lambda: watch.sentinel.error)
        assert watch.verdicts[1] is ServerRefusedError


async def test_a_server_that_moves_is_found_at_its_new_address(
    port: Port, lookup: Callable[[object], None]
) -> None:
    lookup(["127.0.0.78"])
    async with watching(Address("nas.example", port.port)) as watch:
        await watch.says(ServerRefusedError)
        lookup([HOST])
        await watch.says(ServerRefusedError, None)
        assert watch.sentinel.answers_at == HOST
