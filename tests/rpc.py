# SPDX-License-Identifier: LGPL-2.1-or-later
"""An RPC server for tests: it answers what a test says, or as a real one did."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from storaged_conn.system.rpc import LAST_FRAGMENT, Procedure, Reader, numbers, opaque
from storaged_conn.system.sentinel import Address
from tests.live import DEADLINE

ACCEPTED: Final = numbers(1, 0, 0, 0)
"""A reply up to its status: REPLY, MSG_ACCEPTED, and an empty verifier."""

Answer = Callable[[Procedure, bytes], bytes | None]
"""What comes after the xid of a reply to a question and its arguments; None is silence."""


def success(results: bytes = b"") -> bytes:
    return ACCEPTED + numbers(0) + results


def mismatch(low: int, high: int) -> bytes:
    return ACCEPTED + numbers(2, low, high)


def export_list(*exports: tuple[str, tuple[str, ...]]) -> bytes:
    """Write what the mount protocol's EXPORT gives."""
    written = b""
    for path, clients in exports:
        groups = b"".join(numbers(1) + opaque(one.encode()) for one in clients)
        written += numbers(1) + opaque(path.encode()) + groups + numbers(0)
    return success(written + numbers(0))


def read_call(call: bytes) -> tuple[int, Procedure, bytes]:
    """Give the xid, what is asked for, and its arguments."""
    reader = Reader(call)
    xid, kind, rpc, *what = (reader.number() for _ in range(6))
    assert (kind, rpc) == (0, 2)
    credentials = [(reader.number(), reader.opaque()) for _ in range(2)]
    assert [flavour for flavour, _ in credentials] == [1, 0]
    return xid, Procedure(*what), call[reader._at :]


@asynccontextmanager
async def rpc_server(
    answer: Answer, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Address]:
    """Serve; gives where."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        connections.add(task)
        try:
            while True:
                size = Reader(await reader.readexactly(4)).number() & ~LAST_FRAGMENT
                xid, what, arguments = read_call(await reader.readexactly(size))
                reply = answer(what, arguments)
                if reply is not None:
                    writer.write(in_two(numbers(xid) + reply))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.transport.abort()
            connections.discard(task)

    server = await asyncio.start_server(serve, host, port)
    try:
        where = server.sockets[0].getsockname()
        yield Address(where[0], where[1])
    finally:
        server.close()
        if connections:
            await asyncio.wait(connections, timeout=DEADLINE)
        await asyncio.sleep(0)  # what was aborted is closed in the next turn


def in_two(reply: bytes) -> bytes:
    """Write a record of two fragments. Source: RFC 5531 section 11."""
    head, tail = reply[:7], reply[7:]
    return numbers(len(head)) + head + numbers(LAST_FRAGMENT | len(tail)) + tail
