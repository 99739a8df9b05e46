# SPDX-License-Identifier: LGPL-2.1-or-later
"""On real buses: what ends a connection of dbus-next does not end one of ours."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from dbus_next import Message as Theirs
from dbus_next import Variant

from storaged_conn.bus import wire
from storaged_conn.bus.connection import READ, Bus, BusLostError, CallError
from storaged_conn.bus.wire import MAX_SENT, Field, Flag
from tests.broker import broker_bus
from tests.bus.wires import (
    INTERFACE,
    PATH,
    Heard,
    call_to,
    connected,
    kill_bus,
    naive,
    raw_call,
    subscribe,
)
from tests.live import DEADLINE, Address, private_bus

pytestmark = pytest.mark.bus

BURST = 5000
TEXT = "x" * 200
SMALLEST = len(wire.header(call_to(":1.1")))


@pytest.fixture(scope="module")
def daemon_address() -> Iterator[Address]:
    with private_bus() as address:
        yield address


@pytest.fixture(scope="module")
def broker_address() -> Iterator[Address]:
    with broker_bus() as address:
        yield address


@pytest.fixture(scope="module", params=[private_bus, broker_bus])
def address(request: pytest.FixtureRequest) -> Iterator[Address]:
    with request.param() as address:
        yield address


async def until_lost(bus: Any) -> Any:
    """Wait until a connection of dbus-next ends, and say why."""
    async with asyncio.timeout(DEADLINE):
        ends: Any = await asyncio.gather(bus.wait_for_disconnect(), return_exceptions=True)
    return ends[0]


# a full socket


async def test_a_burst_of_signals_to_a_slow_reader_arrives_whole(address: Address) -> None:
    async with connected(address) as sender, connected(address) as reader:
        heard = Heard()
        await subscribe(reader, heard)
        reader.pause(reading=False)
        with address:
            for number in range(BURST):
                body = wire.marshal("us", [number, TEXT])
                sender.signal(PATH, INTERFACE, "Signal", "us", body)
            assert sender._queue, "the socket took it all, so nothing was shown"
        reader.pause(reading=True)
        await heard.count(BURST)
        assert [one.arguments()[0] for one in heard.messages] == list(range(BURST))
        assert await sender.ask("GetId")


async def test_dbus_next_would_lose_its_connection_in_the_burst(daemon_address: Address) -> None:
    async with naive(daemon_address) as bus:
        with daemon_address:
            message = Theirs.new_signal(PATH, INTERFACE, "Signal", "s", [TEXT])
            sent = [bus.send(message) for _ in range(BURST)]
            assert isinstance(await until_lost(bus), BlockingIOError)
        assert not all(one.done() and not one.exception() for one in sent)


# what is not read


async def test_a_flood_of_calls_leaves_the_loop_its_turns(daemon_address: str) -> None:
    async with connected(daemon_address) as bus, connected(daemon_address) as flooder:
        bus.on_call = heard = Heard()
        turns = await flood(flooder, bus.unique_name, heard)
        assert max(turns) <= READ // SMALLEST + 1


async def test_dbus_next_would_keep_the_loop_as_long_as_the_flood_lasts(
    daemon_address: str,
) -> None:
    async with naive(daemon_address) as bus, connected(daemon_address) as flooder:
        assert bus.unique_name
        heard = Heard()
        bus.add_message_handler(heard)
        turns = await flood(flooder, bus.unique_name, heard)
        assert max(turns) > READ // SMALLEST + 1


async def flood(flooder: Bus, name: str, heard: Heard) -> list[int]:
    """Send many calls that want no reply, and count how many each turn of the loop brings."""
    raw = wire.header(call_to(name, flags=Flag.NO_REPLY_EXPECTED))
    flooder._sock.settimeout(None)
    sending = asyncio.create_task(asyncio.to_thread(flooder._sock.sendall, raw * BURST))
    turns, before = [0], 0
    async with asyncio.timeout(DEADLINE):
        while before < BURST:
            await asyncio.sleep(0)  # one turn
            turns.append(len(heard.messages) - before)
            before = len(heard.messages)
        await sending
    return turns


async def test_dbus_next_would_read_a_body_before_anybody_can_refuse(daemon_address: str) -> None:
    many = wire.marshal("av", [[Variant("y", 1)] * 10_000])
    async with naive(daemon_address) as bus, connected(daemon_address) as caller:
        assert bus.unique_name
        called = asyncio.get_running_loop().create_future()
        bus.add_message_handler(called.set_result)
        caller.send(call_to(bus.unique_name, many, "av"))
        async with asyncio.timeout(DEADLINE):
            message = await called
        assert len(message.body[0]) == 10_000


# what nobody should send

UNKNOWN = [(11, Variant("s", "")), (200, Variant("a{sv}", {"a": Variant("y", 1)}))]


def with_field(destination: str, unknown: Any) -> bytes:
    fields = call_to(destination).fields.items()
    known = [(code, Variant("o" if code == Field.PATH else "s", one)) for code, one in fields]
    return raw_call([*known, unknown])


@pytest.mark.parametrize("unknown", UNKNOWN)
async def test_an_unknown_header_field_is_ignored(address: str, unknown: Any) -> None:
    async with connected(address) as bus, connected(address) as sender:
        bus.on_call = heard = Heard()
        sender._sock.sendall(with_field(bus.unique_name, unknown))
        sender.send(call_to(bus.unique_name))
        await heard.count(2)
        assert [one.text(Field.PATH) for one in heard.messages] == [PATH, PATH]


@pytest.mark.parametrize("unknown", UNKNOWN)
async def test_dbus_next_would_die_of_an_unknown_header_field(
    broker_address: str, unknown: Any
) -> None:
    async with naive(broker_address) as bus, connected(broker_address) as sender:
        assert bus.unique_name
        sender._sock.sendall(with_field(bus.unique_name, unknown))
        assert isinstance(await until_lost(bus), ValueError)


async def test_any_text_passes_the_bus(address: str) -> None:
    async with connected(address) as bus, connected(address) as caller:
        bus.on_call = lambda call: bus.error(call, "a.b.C", "NUL \0 and half a pair \ud800")
        with pytest.raises(CallError) as caught:
            await caller.call((bus.unique_name, PATH, INTERFACE, "Method"), timeout=DEADLINE)
        assert str(caught.value) == "NUL \N{REPLACEMENT CHARACTER} and half a pair ?"
        assert await bus.ask("GetId")


async def test_dbus_next_would_be_thrown_out_for_nul(daemon_address: str) -> None:
    async with naive(daemon_address) as bus:
        bus.send(Theirs.new_signal(PATH, INTERFACE, "Signal", "s", ["a\0b"]))
        assert isinstance(await until_lost(bus), EOFError | ConnectionError)


async def test_the_largest_reply_passes_the_bus(address: str) -> None:
    async with connected(address) as bus, connected(address, 2 * MAX_SENT) as caller:
        body = wire.marshal("ay", [bytes(MAX_SENT - 4)])
        bus.on_call = lambda call: bus.reply(call, "ay", body)
        where = (bus.unique_name, PATH, INTERFACE, "Method")
        (received,) = await caller.call(where, timeout=DEADLINE)
        assert len(received) == MAX_SENT - 4
        assert await bus.ask("GetId")


async def test_dbus_next_would_be_thrown_out_for_a_larger_one(daemon_address: str) -> None:
    async with naive(daemon_address) as bus:
        bus.send(Theirs.new_signal(PATH, INTERFACE, "Signal", "ay", [bytes(32 * 2**20)]))
        assert isinstance(await until_lost(bus), EOFError | ConnectionError)


# a bus that goes


async def test_when_the_bus_is_killed_pending_calls_fail() -> None:
    with private_bus() as address:
        async with connected(address) as bus, connected(address) as silent:
            silent.on_call = heard = Heard()
            where = (silent.unique_name, PATH, INTERFACE, "Method")
            tasks = [asyncio.create_task(bus.call(where, timeout=DEADLINE)) for _ in range(3)]
            await heard.count(3)
            await kill_bus(bus)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(one) for one in results] == [BusLostError] * 3
            with pytest.raises(BusLostError):
                await bus.lost
            with pytest.raises(BusLostError):
                bus.signal(PATH, INTERFACE, "Signal", "", b"")


async def test_a_call_to_nobody_and_one_to_a_silent_peer_end_with_an_error(address: str) -> None:
    async with connected(address) as bus, connected(address) as silent:
        silent.on_call = Heard()
        for name, error in ((":1.99999", "ServiceUnknown"), (silent.unique_name, "NoReply")):
            with pytest.raises(CallError) as caught:
                await bus.call((name, PATH, INTERFACE, "Method"), timeout=0.05)
            assert error in caught.value.name
