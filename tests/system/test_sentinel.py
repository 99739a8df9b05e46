# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import socket
from contextlib import closing

import pytest

from storaged_conn.config import Keepalive
from storaged_conn.core.backoff import BURST
from storaged_conn.errors import (
    NoNetworkError,
    ServerRefusedError,
    UnreachableError,
)
from storaged_conn.system import sentinel as module
from storaged_conn.system.routes import Routes
from storaged_conn.system.sentinel import (
    LONGEST_RETRY,
    NO_WAY,
    PATIENCE,
    Address,
)
from tests.system.ports import (
    DEADLINE,
    HOST,
    LOOPBACK,
    Port,
    connection_to,
    silent_port,
    soon,
    turns,
)
from tests.system.watch import EARLY, now, watching

# one server


async def test_a_server_that_answers_is_up(port: Port) -> None:
    async with watching(port.address) as watch:
        assert not watch.sentinel.known.is_set()
        await watch.says(None)
        assert watch.sentinel.known.is_set()
        assert watch.sentinel.answers_at == HOST
        watch.sentinel.check()
        await port.has_accepted(1)


async def test_ways_are_asked_of_the_kernel(port: Port) -> None:
    with closing(Routes()) as routes:
        async with watching(port.address, routes) as watch:
            await watch.says(None)
            assert watch.sentinel._ways == [LOOPBACK]


async def test_the_kernel_is_told_how_to_probe(port: Port) -> None:
    async with watching(port.address, timing=Keepalive(5, 2, 4)) as watch:
        await watch.says(None)
        with closing(connection_to(port.port)) as ours:
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            options = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            found = [ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, one)) for one in options]
    assert found == [5, 2, 4, 13_000]


async def test_the_longest_times_are_no_trouble(port: Port) -> None:
    async with watching(port.address, timing=Keepalive(32767, 32767, 127)) as watch:
        await watch.says(None)


async def test_a_port_where_nothing_listens_is_refused(port: Port) -> None:
    await port.kill()
    async with watching(port.address) as watch:
        await watch.says(ServerRefusedError)
        with pytest.raises(ServerRefusedError, match=f"^{HOST}:{port.port}: nothing answers"):
            watch.sentinel.check()


async def test_a_killed_server_is_down_at_once_and_up_again_soon(port: Port) -> None:
    async with watching(port.address) as watch:
        await port.has_accepted(1)
        for times in (1, 2):
            killed = now()
            await port.kill()
            await watch.says(*[None, ServerRefusedError] * times)
            assert now() - killed < PATIENCE
            await soon(lambda: watch.sentinel._wait)
            assert watch.pause() <= LONGEST_RETRY
            began = now()
            await port.open()
            await watch.says(*[None, ServerRefusedError] * times, None)
            assert now() - began < 2 * LONGEST_RETRY  # 0.9 s and what a busy machine needs
            await port.has_accepted(times + 1)


@pytest.mark.parametrize("reset", [False, True], ids=["politely", "by a reset"])
async def test_a_connection_that_is_closed_is_made_anew_and_no_news(
    port: Port, *, reset: bool
) -> None:
    async with watching(port.address) as watch:
        for times in range(1, 3):
            await port.has_accepted(times)
            watch.sentinel._allowance.tokens = 0  # it needs none
            await port.part(reset=reset)
        await port.has_accepted(3)
        await watch.says(None)


@pytest.mark.usefixtures("lazy")
async def test_only_the_first_of_short_connections_is_made_anew_without_a_pause(
    port: Port,
) -> None:
    async with watching(port.address) as watch:
        for times in (1, 2):
            await port.has_accepted(times)
            await port.part()
        await soon(lambda: watch.sentinel._wait and watch.pause() > 2 * DEADLINE)
        await watch.says(None)


async def test_a_server_that_closes_everything_at_once_is_not_asked_without_a_pause(
    port: Port,
) -> None:
    port.rude = True
    began = now()
    async with watching(port.address) as watch:
        await port.has_accepted(2)
        assert now() - began < PATIENCE
        await port.has_accepted(5)
        assert now() - began >= 0.1 + 0.2 + 0.4 - EARLY  # at least the half of each pause
        await watch.says(None)


async def test_what_a_server_says_is_ignored(port: Port) -> None:
    port.greeting = b"220 welcome\r\n" * 100_000
    async with watching(port.address) as watch:
        await port.has_accepted(1)  # it has been read: that is more than the buffers hold
        await watch.says(None)
        await turns(10)
        assert port.accepts == 1


async def test_a_silent_server_is_down_while_the_attempt_goes_on() -> None:
    began = now()
    with silent_port() as (address, server):
        async with watching(address) as watch:
            await watch.says(UnreachableError)
            assert now() - began >= PATIENCE - EARLY
            with pytest.raises(UnreachableError, match=f"^{address.text} does not answer"):
                watch.sentinel.check()
            asked = len(watch.routes.asked)
            server.accept()[0].close()
            await watch.says(UnreachableError, None)
            if kernel_tries_each_second():
                assert len(watch.routes.asked) == asked


def kernel_tries_each_second() -> bool:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, module.TCP_RTO_MAX_MS, module.SYN_EVERY_MS)
        except OSError:
            return False
    return True


# pauses and kicks


async def test_a_kick_ends_a_pause(port: Port) -> None:
    async with watching(port.address) as watch:
        watch.routes.take(HOST)
        await watch.says(NoNetworkError)
        await soon(lambda: watch.sentinel._wait)
        watch.routes.ways.clear()
        began = now()
        watch.sentinel.kick()
        watch.sentinel.kick()  # the second one costs nothing
        await watch.says(NoNetworkError, None)
        assert now() - began < NO_WAY / 2
        assert watch.sentinel._allowance.tokens > BURST - 2


@pytest.mark.usefixtures("hasty")
async def test_a_kick_ends_an_attempt_that_is_stuck() -> None:
    with silent_port() as (address, server):
        async with watching(address) as watch:
            await soon(lambda: watch.sentinel._wait)
            await watch.says(UnreachableError)
            asked = len(watch.routes.asked)
            server.accept()[0].close()
            watch.sentinel.kick()
            await watch.says(UnreachableError, None)
            assert len(watch.routes.asked) > asked


async def test_a_kick_of_what_is_up_does_nothing(port: Port) -> None:
    async with watching(port.address) as watch:
        await port.has_accepted(1)
        await watch.says(None)
        watch.sentinel.kick()
        await turns(10)
        assert watch.verdicts == [None]
        assert port.accepts == 1


async def test_kicks_are_capped_and_the_last_one_is_not_lost(port: Port) -> None:
    async with watching(port.address) as watch:
        watch.routes.take(HOST)
        await watch.says(NoNetworkError)
        began = now()
        for _ in range(5 * BURST):
            watch.sentinel.kick()
            await turns(5)
        attempts = len(watch.routes.asked) / 2  # each asks a second time for the reason
        assert BURST <= attempts <= BURST + 3 + 2 * (now() - began)
        watch.routes.ways.clear()
        began = now()
        watch.sentinel.kick()
        await watch.says(NoNetworkError, None)
        assert now() - began < NO_WAY / 2  # but as soon as there is an allowance


async def test_a_kick_at_the_very_moment_of_the_next_attempt_is_no_trouble(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NO_WAY", 0.01)
    loop, troubles = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    async with watching(port.address) as watch:
        watch.routes.take(HOST)
        await watch.says(NoNetworkError)
        for _ in range(40):
            await soon(lambda: watch.sentinel._wait)
            moment = now() + watch.pause()
            handles = [loop.call_at(moment + n * 1e-7, watch.sentinel.kick) for n in range(-3, 4)]
            await watch.pause_ends()
            for handle in handles:
                handle.cancel()
        watch.routes.ways.clear()
        await watch.says(NoNetworkError, None)
    assert troubles == []


async def test_a_kick_at_any_moment_of_an_attempt_is_no_trouble(port: Port) -> None:
    for moment in range(40):
        async with watching(port.address) as watch:
            await turns(moment)
            watch.sentinel.kick()
            await watch.says(None)


async def test_an_end_at_any_moment_leaves_nothing(port: Port) -> None:
    for moment in range(40):
        async with watching(port.address):
            await turns(moment)


async def test_to_renew_is_no_news_and_a_new_connection(port: Port) -> None:
    async with watching(port.address) as watch:
        await port.has_accepted(1)
        await watch.says(None)
        await turns(5)
        watch.sentinel.renew()
        await port.has_accepted(2)
        await watch.says(None)
        await port.kill()
        await watch.says(None, ServerRefusedError)


# addresses


@pytest.mark.parametrize("text", ["nas.example:1", "192.0.2.1:65535", "[2001:db8::1]:80"])
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert Address.read(text).text == text
