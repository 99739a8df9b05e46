# SPDX-License-Identifier: LGPL-2.1-or-later
"""A subsystem that speaks as much NVMe/TCP as is needed, on the loopback."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from struct import pack, unpack_from

from storaged_conn.system.sentinel import Address

Answer = Callable[[bytes, bytes], tuple[int, int, bytes]]
"""From a command and its data to a status, a result and data."""


class Subsystem:
    """Answers commands.

    Attributes:
        commands: what came: each command with its data.
    """

    def __init__(self, answer: Answer, alignment: int = 0) -> None:
        self.commands: list[tuple[bytes, bytes]] = []
        self._answer = answer
        self._alignment = alignment

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert (await reader.readexactly(128))[0] == 0
            writer.write(pack("<BBBBIHBBI112x", 1, 0, 128, 0, 128, 0, self._alignment, 0, 8192))
            while True:
                await self._serve_one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(8)
        kind, _, size, offset, length = unpack_from("<BBBBI", head)
        assert (kind, size) == (4, 72)
        body = await reader.readexactly(length - 8)
        command, data = body[:64], body[offset - 8 :] if offset else b""
        assert offset % (4 * (self._alignment + 1)) == 0
        self.commands.append((command, data))
        status, result, back = self._answer(command, data)
        (number,) = unpack_from("<H", command, 2)
        if back:
            header = pack("<BBBBIHHII4x", 7, 4, 24, 24, 24 + len(back), number, 0, 0, len(back))
            writer.write(header + back)
        writer.write(pack("<BBBBIQHHHH", 5, 0, 24, 0, 24, result, 0, 0, number, status << 1))


@asynccontextmanager
async def serving(subsystem: Subsystem) -> AsyncIterator[Address]:
    server = await asyncio.start_server(subsystem.serve, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
