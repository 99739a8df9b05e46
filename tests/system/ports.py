# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a sentinel meets: servers on the loopback, ways that come and go, and names."""

import asyncio
import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from storaged_conn.errors import AttemptError, NoNetworkError
from storaged_conn.system.routes import Route, Routes
from storaged_conn.system.sentinel import Address

HOST: Final = "127.0.0.77"
"""An address from which nobody connects: a client of 127.0.0.1 that tries the same free port again
and again may one day have it itself, and be connected to itself. Source: RFC 9293 section 3.5."""

LOOPBACK: Final = Route("lo", "127.0.0.1", "")
DEADLINE: Final = 20.0


class News:
    """Lets a test wait until something is as it wants."""

    def __init__(self) -> None:
        self._news = asyncio.Event()

    def tell(self) -> None:
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when a condition holds, asking again whenever something happened."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._news.clear()
                await self._news.wait()


class Port(News):
    """A TCP server that does nothing, or as little as it is told.

    Attributes:
        accepts: connections that it has had.
        greeting: what it says first.
        rude: it closes every connection at once.
    """

    def __init__(self, host: str = HOST) -> None:
        super().__init__()
        self.host = host
        self.port = 0
        self.accepts = 0
        self.greeting = b""
        self.rude = False
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Port":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def address(self) -> Address:
        return Address(self.host, self.port)

    async def open(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """End as a process does that is killed."""
        if self._server:
            self._server.close()
            self._server = None
        await self.part()

    async def part(self, *, reset: bool = False) -> None:
        """Close all connections, politely or not, and go on listening."""
        writers, self._writers = self._writers, []
        for writer in writers:
            if reset:  # source: socket(7), SO_LINGER
                ours = writer.get_extra_info("socket")
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def has_accepted(self, wanted: int) -> None:
        await self.until(lambda: self.accepts >= wanted)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        writer.write(self.greeting)
        with suppress(ConnectionError):
            await writer.drain()
            self.accepts += 1
            self.tell()
            if not self.rude:
                await reader.read()  # until the client has gone
        writer.close()


class FakeRoutes(Routes):
    """Ways that are given and taken away.

    Attributes:
        ways: the way to each address, LOOPBACK where nothing else is said, or why there is none.
        asked: every address that was asked for.
    """

    def __init__(self) -> None:
        self.ways: dict[str, Route | AttemptError] = {}
        self.asked: list[str] = []

    def find(self, address: str) -> Route:
        self.asked.append(address)
        way = self.ways.get(address, LOOPBACK)
        if isinstance(way, AttemptError):
            raise way
        return way

    def take(self, address: str) -> None:
        """Take the way to an address away."""
        self.ways[address] = NoNetworkError(f"there is no route to {address}")


@contextmanager
def silent_port() -> Iterator[tuple[Address, socket.socket]]:
    """Give a server that answers nobody before the socket accepts somebody, and then the next one.

    Source: listen(2): where the queue is full, the kernel ignores who asks.
    """
    with closing(socket.create_server((HOST, 0), backlog=0)) as server:
        place = server.getsockname()
        with closing(socket.create_connection(place)):
            yield Address(*place), server


async def turns(number: int = 10) -> None:
    """Give everybody else some turns of the event loop."""
    for _ in range(number):
        await asyncio.sleep(0)


async def soon(condition: Callable[[], object]) -> None:
    """Wait for what comes within a few turns of the loop, or milliseconds, and tells nobody."""
    clock = asyncio.get_running_loop().time
    end = clock() + DEADLINE
    for _ in itertools.takewhile(lambda _: clock() < end, itertools.count()):
        if condition():
            return
        await asyncio.sleep(0)
    raise TimeoutError


def open_files() -> int:
    """Count the open files of this process."""
    return len(os.listdir("/proc/self/fd"))


def connection_to(port: int) -> socket.socket:
    """Give a copy of the socket of this process that is connected to a port."""
    for link in Path("/proc/self/fd").iterdir():
        if link.is_socket():
            copy = socket.socket(fileno=os.dup(int(link.name)))
            with suppress(OSError):  # it is not connected
                if copy.getpeername()[1:2] == (port,):
                    return copy
            copy.close()
    raise AssertionError(f"there is no connection to port {port}")
