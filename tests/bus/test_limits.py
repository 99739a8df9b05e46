# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a connection does with what is too much: it keeps neither it nor anybody waiting."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.bus import connection, wire
from storaged_conn.bus.connection import AHEAD, READ, BusLostError, CallError
from storaged_conn.bus.wire import Field, Kind, Message
from tests.bus.wires import (
    ASKED,
    SAID,
    Heard,
    asking,
    call_to,
    drain,
    fill,
    incoming,
    lost,
    say,
    send_much,
    sent_serial,
    wired,
)
from tests.live import DEADLINE

# what does not fit


async def test_a_large_body_is_skipped_and_answered_without_being_kept() -> None:
    with wired(max_message=100) as (bus, theirs):
        bus.on_oversize, bus.on_call = oversize, ordinary = Heard(), Heard()
        size = 8 * 2**20
        head = wire.header(Message(Kind.CALL, 0, 3, {**ASKED, Field.SENDER: ":1.9"}, bytes(size)))
        await say(theirs, head)
        await oversize.count(1)
        for _ in range(size // READ):
            await say(theirs, bytes(READ))
            assert len(bus._buffer) <= READ
        await say(theirs, incoming(Kind.CALL, ASKED, bytes(100)))
        await ordinary.count(1)
        assert [one.body for one in oversize.messages] == [b""]
        assert [len(one.body) for one in ordinary.messages] == [100]


async def test_a_large_reply_fails_its_call() -> None:
    with wired(max_message=100) as (bus, theirs):
        task = asking(bus)
        answer = {Field.REPLY_SERIAL: await sent_serial(theirs)}
        await say(theirs, incoming(Kind.RETURN, answer, bytes(101)))
        with pytest.raises(CallError, match="larger than 100 bytes") as caught:
            await task
        assert caught.value.name == "org.freedesktop.DBus.Error.LimitsExceeded"


WHOLE = {
    "call": incoming(Kind.CALL, ASKED, b"x" * 100),
    "oversize": incoming(Kind.CALL, ASKED, b"x" * 101),
    "signal": incoming(Kind.SIGNAL, SAID, b"x" * 7),
    "nothing": incoming(Kind.SIGNAL, {**SAID, Field.ERROR_NAME: "x" * wire.MAX_HEADER}, b"x"),
    "large signal": incoming(Kind.SIGNAL, SAID, b"x" * 300),
}


@given(st.lists(st.sampled_from(sorted(WHOLE)), max_size=8), st.lists(st.integers(1, 400)))
def test_messages_are_found_however_the_bytes_are_cut(kinds: list[str], cuts: list[int]) -> None:
    """The large ones are skipped, whole, and so is a header that is too large."""
    heard: list[str] = []

    async def feed() -> None:
        with wired(max_message=100) as (bus, _):
            bus.on_call = lambda message: heard.append("call")
            bus.on_oversize = lambda message: heard.append("oversize")
            bus.listen(lambda message: heard.append("signal"))
            for piece in pieces(b"".join(WHOLE[kind] for kind in kinds), cuts):
                bus._buffer += piece
                bus._take_messages()
            assert not bus._buffer
            assert not bus._skip

    asyncio.run(feed())
    assert heard == [kind for kind in kinds if kind in {"call", "oversize", "signal"}]


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    for cut in cuts:
        yield data[:cut]
        data = data[cut:]
    yield data


async def test_one_turn_of_the_loop_reads_no_more_than_its_share() -> None:
    """However much there is to read: a flood does not keep the loop from its other work."""
    raw = incoming(Kind.CALL, ASKED)
    with wired() as (bus, theirs):
        bus.on_call = heard = Heard()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
        while True:
            try:
                theirs.send(raw * 100)
            except BlockingIOError:
                break
        with counted_turns(heard) as per_turn:
            await heard.count(READ // len(raw) + 100)
        assert 0 < max(per_turn) <= READ // len(raw) + 1


@contextmanager
def counted_turns(heard: Heard) -> Iterator[list[int]]:
    """Count how many messages each turn of the loop brings."""
    loop = asyncio.get_running_loop()
    turns: list[int] = []
    done: list[None] = []
    before = 0

    def tick() -> None:
        nonlocal before
        turns.append(len(heard.messages) - before)
        before = len(heard.messages)
        if not done:
            loop.call_soon(tick)

    tick()
    try:
        yield turns
    finally:
        done.append(None)


# a bus that does not read


async def test_what_does_not_fit_the_socket_is_sent_later_and_in_order() -> None:
    with wired() as (bus, theirs):
        total = fill(bus)
        bus.send(call_to("last.one"))
        flushed = asyncio.create_task(bus.flush())
        data = await drain(theirs, total + 1)
        await flushed
        assert not bus._queued
        assert b"last.one" in data[-200:]
        assert bus._stall is None


async def test_the_bus_has_little_unread_before_what_is_sent_next() -> None:
    with wired() as (bus, _):
        total = fill(bus)
        assert total - bus._queued <= 2 * AHEAD


async def test_there_is_room_when_nothing_waits_to_be_sent() -> None:
    with wired() as (bus, theirs):
        room = asyncio.Event()
        bus.on_room = room.set
        assert not bus.behind
        total = fill(bus)
        assert bus.behind
        await drain(theirs, total)
        async with asyncio.timeout(DEADLINE):
            await room.wait()
        assert not bus.behind


async def test_while_much_waits_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "QUEUE_HIGH", 2 * READ)
    with wired() as (bus, theirs):
        bus.on_call = heard = Heard()
        await say(theirs, incoming(Kind.CALL, ASKED))
        await heard.count(1)
        total = fill(bus)
        while not bus.congested:
            total += send_much(bus)
        await say(theirs, incoming(Kind.CALL, ASKED))
        for _ in range(3):
            await asyncio.sleep(0)  # a turn of the loop
        assert len(heard.messages) == 1
        await drain(theirs, total)
        await heard.count(2)


async def test_a_bus_that_never_reads_is_left_when_too_much_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "QUEUE_MAX", 8 * READ)
    with wired() as (bus, _):
        with suppress(BusLostError):
            for _ in range(1000):
                send_much(bus)
        assert await lost(bus) == "the bus does not read from us"
        assert not bus._queue


async def test_a_bus_that_stops_reading_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED", 0.05)
    with wired() as (bus, _):
        fill(bus)
        assert await lost(bus) == "the bus has not read from us for 0.05 s"


async def test_a_bus_that_reads_slowly_is_kept() -> None:
    with wired() as (bus, theirs):
        for _ in range(100):
            send_much(bus)
        before = bus._stall
        assert before is not None
        async with asyncio.timeout(DEADLINE):
            while bus._stall is before:
                await drain(theirs, 1)
                await asyncio.sleep(0)
        assert before.cancelled()
        assert bus._stall is not None
        assert bus._stall.when() > before.when()
