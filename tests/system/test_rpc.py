# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.errors import (
    AttemptError,
    AuthenticationError,
    ProtocolError,
    ServerRefusedError,
    TroubleError,
    UnreachableError,
)
from storaged_conn.system.rpc import (
    GETADDR,
    GETPORT,
    MAX_REPLY,
    RPCBIND_PORT,
    Procedure,
    Reader,
    ask,
    find_port,
    numbers,
    opaque,
)
from storaged_conn.system.sentinel import Address
from tests.mounts import needs_root
from tests.rpc import ACCEPTED, mismatch, rpc_server, success

NFS = Procedure(100003, 4)
MOUNTD = (100005, 3)


def read_all(reader: Reader) -> None:
    while True:
        reader.opaque()


@given(st.lists(st.binary(max_size=40)))
def test_what_is_written_is_read(values: list[bytes]) -> None:
    reader = Reader(numbers(len(values)) + b"".join(map(opaque, values)))
    assert [reader.opaque() for _ in range(reader.number())] == values


@given(st.binary(max_size=64))
def test_whatever_comes_is_read_or_is_trouble(data: bytes) -> None:
    reader = Reader(data)
    with pytest.raises(TroubleError, match="cut off"):
        read_all(reader)


async def test_a_question_is_answered_with_its_results() -> None:
    asked: list[tuple[Procedure, bytes]] = []

    def answer(what: Procedure, arguments: bytes) -> bytes:
        asked.append((what, arguments))
        return success(opaque(b"result"))

    async with rpc_server(answer) as server:
        found = await ask(server, NFS, numbers(5))
    assert found.opaque() == b"result"
    assert asked == [(NFS, numbers(5))]


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (mismatch(3, 3), ProtocolError, "100003 is there in versions 3 to 3, not 4"),
        (ACCEPTED + numbers(1), ProtocolError, "is not there"),
        (ACCEPTED + numbers(5), TroubleError, "error 5"),
        (numbers(1, 1, 1, 5), AuthenticationError, "sec"),
        (numbers(1, 1, 0, 3, 3), ProtocolError, "another version of RPC"),
        (numbers(0), ProtocolError, "no RPC service"),
        (b"", TroubleError, "cut off"),
    ],
)
async def test_every_refusal_is_an_error_of_ours(
    reply: bytes, error: type[AttemptError], words: str
) -> None:
    async with rpc_server(lambda what, arguments: reply) as server:
        with pytest.raises(error, match=words) as caught:
            await ask(server, NFS)
    assert "; " in str(caught.value) or words in str(caught.value)


async def test_nothing_on_the_port_is_refused() -> None:
    async with rpc_server(lambda what, arguments: None) as server:
        pass
    with pytest.raises(ServerRefusedError, match=server.text):
        await ask(server, NFS)


async def test_what_is_closed_or_too_long_is_no_answer() -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(numbers(MAX_REPLY + 1))
        writer.close()

    for answer in (close, flood):
        server = await asyncio.start_server(answer, "127.0.0.1")
        async with server:
            host, port = server.sockets[0].getsockname()
            with pytest.raises(UnreachableError):
                await ask(Address(host, port), NFS)


@needs_root
@pytest.mark.root
@pytest.mark.parametrize(("host", "question"), [("127.0.0.83", GETPORT), ("::1", GETADDR)])
async def test_rpcbind_knows_the_port(host: str, question: Procedure) -> None:
    asked: list[bytes] = []

    def answer(what: Procedure, arguments: bytes) -> bytes:
        assert what == question
        asked.append(arguments)
        known = len(asked) == 1
        if what == GETPORT:
            return success(numbers(39897 if known else 0))
        return success(opaque(b"fd09::2.155.217" if known else b""))

    async with rpc_server(answer, host, RPCBIND_PORT):
        assert await find_port(host, *MOUNTD) == 39897
        with pytest.raises(ProtocolError, match="no RPC program 100005 version 3"):
            await find_port(host, *MOUNTD)
    if question == GETPORT:
        assert asked[0] == numbers(*MOUNTD, 6, 0)
    else:
        assert asked[0] == numbers(*MOUNTD) + opaque(b"tcp6") + opaque(b"") + opaque(b"")


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("host", ["127.0.0.83", "::1"])
async def test_a_port_that_none_can_be_is_no_program(host: str) -> None:
    def answer(what: Procedure, arguments: bytes) -> bytes:
        return success(numbers(70000) if what == GETPORT else opaque(b"fd09::2.300.1"))

    async with rpc_server(answer, host, RPCBIND_PORT):
        with pytest.raises(ProtocolError, match="no RPC program 100005 version 3"):
            await find_port(host, *MOUNTD)
