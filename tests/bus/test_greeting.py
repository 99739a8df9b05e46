# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bus that is not there, or does not greet as it should, is reported in time."""

import asyncio
import gc
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from dbus_next.aio import MessageBus

from storaged_conn.bus import connection, wire
from storaged_conn.bus.connection import Bus, BusLostError
from storaged_conn.bus.wire import FIXED, Field, Kind
from tests.bus.wires import MAX_MESSAGE, fake_bus, incoming

Step = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the other side gives up


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"OK 0123456789abcdef\r\n")
    await reader.readline()


def answer(line: bytes) -> Step:
    async def step(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(line)

    return step


async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(FIXED)
    writer.write(b"nonsense" * 10)


async def refuse_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(FIXED)
    fields = {Field.REPLY_SERIAL: 1, Field.ERROR_NAME: "a.b.Full", Field.SIGNATURE: "s"}
    writer.write(incoming(Kind.ERROR, fields, wire.marshal("s", ["no more room"])))


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([leave], "closed|reset|Broken pipe"),
        ([answer(b""), leave], "closed the connection during authentication"),
        ([answer(b"OK"), leave], "closed the connection during authentication"),
        ([answer(b"REJECTED EXTERNAL\r\n")], "REJECTED"),
        ([answer(b"whatever\r\n")], "whatever"),
        ([accept, leave], "the bus"),
        ([accept, babble], "nonsense"),
        ([accept, refuse_hello], "no more room"),
    ],
)
async def test_a_bus_that_does_not_want_us_is_reported(
    tmp_path: Path, steps: list[Step], reason: str
) -> None:
    await greet(tmp_path, steps, reason)


@pytest.mark.parametrize("steps", [[answer(b"")], [answer(b"x" * 10000)], [accept]])
async def test_a_bus_that_stays_silent_is_reported_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[Step]
) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE", 0.1)
    await greet(tmp_path, steps, "no answer|no reply within")


async def greet(tmp_path: Path, steps: list[Step], reason: str) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for step in [*steps, stay_silent]:
            await step(reader, writer)
        writer.close()
        ended.set()

    async with fake_bus(tmp_path, serve) as address:
        with pytest.raises(BusLostError, match=f"cannot connect to bus .*({reason})"):
            await Bus.open(address, max_message=MAX_MESSAGE)
        await ended.wait()  # our end was closed
    gc.collect()  # a socket that was left open would be an error now


class SpinningError(Exception):
    """The loop was blocked until a signal came."""


def test_dbus_next_would_spin_when_the_bus_leaves_during_authentication(tmp_path: Path) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise SpinningError

    async def authenticate(listener: socket.socket) -> None:
        bus = MessageBus(bus_address=f"unix:path={tmp_path}/bus")
        with listener.accept()[0] as theirs, bus._sock, bus._stream:
            theirs.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(0.05):
                await bus._authenticate()

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{tmp_path}/bus")
            listener.listen()
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(SpinningError):
                asyncio.run(authenticate(listener))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "address", ["unix:path=/nowhere/bus", "", "nonsense", "unix:", "martian:path=/", "unix:path=x"]
)
async def test_an_address_without_a_bus_is_reported(address: str) -> None:
    with pytest.raises(BusLostError, match="cannot connect to bus"):
        await Bus.open(address, max_message=MAX_MESSAGE)
    gc.collect()
