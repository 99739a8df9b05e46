# SPDX-License-Identifier: LGPL-2.1-or-later
"""Both ends of a wire: a bus that says what a test wants, and connections to a real one."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from dbus_next._private.marshaller import Marshaller
from dbus_next.aio import MessageBus

from storaged_conn.bus import wire
from storaged_conn.bus.connection import READ, Bus, BusLostError
from storaged_conn.bus.wire import Field, Flag, Kind, Message
from storaged_conn.names import DBUS
from tests.live import DEADLINE

MAX_MESSAGE: Final = 2**20
PATH: Final = "/test"
INTERFACE: Final = "test.Interface"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def wired(max_message: int = MAX_MESSAGE) -> Iterator[tuple[Bus, socket.socket]]:
    """Give a connection that is past its greeting, and the socket of its bus."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    theirs.settimeout(0)
    bus = Bus(ours, max_message)
    with closing(bus), theirs:
        bus._watch()
        yield bus, theirs


@asynccontextmanager
async def fake_bus(tmp_path: Path, serve: Serve) -> AsyncIterator[str]:
    """Listen as a bus does; gives the address."""
    path = tmp_path / "bus"
    server = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix:path={path}"
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def connected(address: str, max_message: int = MAX_MESSAGE) -> AsyncIterator[Bus]:
    """Connect as we do."""
    with closing(await Bus.open(address, max_message=max_message)) as bus:
        yield bus


@asynccontextmanager
async def naive(address: str) -> AsyncIterator[Any]:
    """Connect as dbus-next does."""
    bus = await MessageBus(bus_address=address).connect()
    try:
        yield bus
    finally:
        bus.disconnect()
        bus._finalize(None)
        bus._stream.close()
        bus._sock.close()


async def kill_bus(bus: Bus) -> None:
    """End the message bus, a dbus-daemon, as a crash would."""
    (pid,) = await bus.ask("GetConnectionUnixProcessID", "s", DBUS)
    assert pid != os.getpid(), "that is what a dbus-broker says whose controller we are"
    os.kill(pid, signal.SIGKILL)


async def subscribe(bus: Bus, heard: "Heard") -> None:
    """Hear all signals of the tests, and no others."""

    def hear(signal: Message) -> None:
        if signal.text(Field.INTERFACE) == INTERFACE:
            heard(signal)

    bus.listen(hear)
    await bus.ask("AddMatch", "s", f"type='signal',interface='{INTERFACE}'")


def call_to(destination: str, body: bytes = b"", signature: str = "", **more: int) -> Message:
    fields: dict[int, object] = {
        Field.PATH: PATH,
        Field.INTERFACE: INTERFACE,
        Field.MEMBER: "Method",
        Field.DESTINATION: destination,
    }
    if signature:
        fields[Field.SIGNATURE] = signature
    return Message(Kind.CALL, more.get("flags", 0), more.get("serial", 1), fields, body)


def incoming(kind: Kind, fields: Mapping[Any, object], body: bytes = b"") -> bytes:
    """Write a message as it comes from a bus."""
    message = Message(kind, 0, 77, {Field.SENDER: ":1.9", **fields}, body)
    return wire.header(message) + body


def raw_call(fields: Sequence[tuple[int, Any]]) -> bytes:
    """Write a call with any header fields, as dbus-next marshals them."""
    head = [ord("l"), Kind.CALL, Flag.NO_REPLY_EXPECTED, 1, 0, 9, [list(one) for one in fields]]
    raw = bytes(Marshaller("yyyyuua(yv)", head).marshall())
    return raw + bytes(-len(raw) % 8)


class Heard:
    """Collects messages, and lets a test wait until there are enough."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._more = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._more.set()

    async def count(self, wanted: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while len(self.messages) < wanted:
                self._more.clear()
                await self._more.wait()


ASKED: dict[int, object] = {Field.PATH: PATH, Field.MEMBER: "Method"}
SAID: dict[int, object] = {**ASKED, Field.INTERFACE: INTERFACE}
NONSENSE = b"\xff" * 40


async def lost(bus: Bus) -> str:
    """Wait for the end of a connection, and give its reason."""
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(BusLostError) as caught:
            await bus.lost
    return str(caught.value)


async def drain(theirs: socket.socket, wanted: int) -> bytes:
    """Read as a bus does, until there are so many bytes."""
    data = bytearray()
    async with asyncio.timeout(DEADLINE):
        while len(data) < wanted:
            data += await asyncio.get_running_loop().sock_recv(theirs, READ)
    return bytes(data)


async def say(theirs: socket.socket, raw: bytes) -> None:
    async with asyncio.timeout(DEADLINE):
        await asyncio.get_running_loop().sock_sendall(theirs, raw)


def fill(bus: Bus) -> int:
    """Send more than a socket holds; returns the bytes of it."""
    sent = 0
    while len(bus._queue) < 2:
        sent += send_much(bus)
    return sent


def send_much(bus: Bus) -> int:
    message = call_to("a.b", bytes(READ), flags=Flag.NO_REPLY_EXPECTED)
    bus.send(message)
    return len(wire.header(message)) + READ


def asking(bus: Bus, timeout: float = DEADLINE) -> asyncio.Task[list[object]]:
    where = ("a.b", PATH, INTERFACE, "Method")
    return asyncio.create_task(bus.call(where, timeout=timeout))


async def sent_serial(theirs: socket.socket) -> int:
    """Take one call, and give its serial."""
    head = await drain(theirs, wire.FIXED)
    return wire.parse(head, b"").serial
