# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks one question of an ONC RPC service, over TCP, from the event loop.

rpcinfo(8) and showmount(8) could ask too, in children; but they resolve the name again, which may
hang, have time-outs of their own, are not installed everywhere, and say what failed in prose.

Source: RFC 5531 (messages), RFC 4506 (XDR), RFC 1833 (rpcbind).
"""

import asyncio
import random
from contextlib import suppress
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from storaged_conn.errors import (
    AttemptError,
    AuthenticationError,
    ProtocolError,
    ServerRefusedError,
    TimedOutError,
    TroubleError,
    UnreachableError,
)
from storaged_conn.system.sentinel import MAX_PORT, Address

DEADLINE: Final = 5.0
"""Seconds for an answer, which takes milliseconds: two lost segments are sent again within 3 s.
Source: RFC 6298 section 2."""

MAX_REPLY: Final = 4 << 20
"""Bytes: a list of 30 000 exports."""

CALL, REPLY = 0, 1
RPC_VERSION: Final = 2
ACCEPTED: Final = 0
AUTH_ERROR: Final = 1
SUCCESS, PROG_UNAVAIL, PROG_MISMATCH = 0, 1, 2
AUTH_SYS: Final = 1
LAST_FRAGMENT: Final = 0x80000000
"""Source: RFC 5531 sections 9 and 11."""

NULL: Final = 0
RPCBIND_PORT: Final = 111
TCP: Final = 6

_U32: Final = Struct(">I")


class Procedure(NamedTuple):
    """What is asked."""

    program: int
    version: int
    number: int = NULL


GETPORT: Final = Procedure(100000, 2, 3)
GETADDR: Final = Procedure(100000, 3, 3)
"""Source: RFC 1833 sections 3.2 and 2.2.1: the first knows IPv4 alone, and old servers it alone."""


class Reader:
    """Takes XDR values from the front of some bytes.

    Every method raises TroubleError where there are too few.
    """

    def __init__(self, data: bytes) -> None:
        """Begin at the first byte."""
        self._data = data
        self._at = 0

    def number(self) -> int:
        """Take an unsigned integer."""
        try:
            (value,) = _U32.unpack_from(self._data, self._at)
        except StructError:
            raise TroubleError("the server's answer was cut off; see the server") from None
        self._at += _U32.size
        return int(value)

    def opaque(self) -> bytes:
        """Take a string of bytes."""
        size = self.number()
        value = self._data[self._at : self._at + size]
        if len(value) < size:
            raise TroubleError("the server's answer was cut off; see the server")
        self._at += size + -size % 4
        return value


def numbers(*values: int) -> bytes:
    """Write unsigned integers."""
    return b"".join(map(_U32.pack, values))


def opaque(value: bytes) -> bytes:
    """Write a string of bytes."""
    return numbers(len(value)) + value + bytes(-len(value) % 4)


async def ask(server: Address, what: Procedure, arguments: bytes = b"") -> Reader:
    """Ask one question, on a connection of its own, as root of this host.

    Args:
        server: its host is an address, not a name.
        what: the question.
        arguments: in XDR.

    Returns:
        The results.

    Raises:
        AttemptError: it did not answer, or not this.
    """
    xid = random.getrandbits(32)  # tells answers apart, keeps no secret
    try:
        async with asyncio.timeout(DEADLINE):
            reply = await _exchange(server, _call(xid, what) + arguments)
    except TimeoutError:
        raise TimedOutError(
            f"{server.text}: no answer to RPC {what.program} within {DEADLINE:g} s; see the server"
        ) from None
    except ConnectionRefusedError:
        raise ServerRefusedError(
            f"{server.text}: nothing answers on this port; see the server"
        ) from None
    except (OSError, EOFError) as error:
        raise UnreachableError(f"{server.text}: {error}; see the server and the network") from None
    return _results(server, what, xid, Reader(reply))


async def find_port(host: str, program: int, version: int) -> int:
    """Ask rpcbind for the TCP port of a program.

    Args:
        host: an address.
        program: its number.
        version: of the program.

    Raises:
        AttemptError: rpcbind did not answer, or there is no such program.
    """
    rpcbind = Address(host, RPCBIND_PORT)
    if ":" in host:
        arguments = numbers(program, version) + opaque(b"tcp6") + opaque(b"") + opaque(b"")
        found = (await ask(rpcbind, GETADDR, arguments)).opaque()
        port = _port_of(found.decode(errors="replace"))
    else:
        port = (await ask(rpcbind, GETPORT, numbers(program, version, TCP, 0))).number()
    if not 0 < port <= MAX_PORT:
        raise ProtocolError(f"{host}: no RPC program {program} version {version}; see the server")
    return port


def _call(xid: int, what: Procedure) -> bytes:
    identity = numbers(0) + opaque(b"") + numbers(0, 0, 0)  # stamp, machine, uid, gid, no groups
    credentials = numbers(AUTH_SYS) + opaque(identity) + numbers(0) + opaque(b"")
    return numbers(xid, CALL, RPC_VERSION, *what) + credentials


async def _exchange(server: Address, call: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(numbers(LAST_FRAGMENT | len(call)) + call)
        reply, last = b"", 0
        while not last:
            mark = Reader(await reader.readexactly(4)).number()
            last, size = mark & LAST_FRAGMENT, mark & ~LAST_FRAGMENT
            if len(reply) + size > MAX_REPLY:
                raise OSError(f"an answer of more than {MAX_REPLY} bytes")
            reply += await reader.readexactly(size)
        return reply
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


def _results(server: Address, what: Procedure, xid: int, reply: Reader) -> Reader:
    """Read what comes before the results. Source: RFC 5531 section 9."""
    if (reply.number(), reply.number()) != (xid, REPLY):
        raise ProtocolError(f"{server.text}: what answers on this port is no RPC service")
    if reply.number() != ACCEPTED:
        raise _denial(server, reply)
    reply.number()  # the verifier, which is empty
    reply.opaque()
    status = reply.number()
    if status == SUCCESS:
        return reply
    where = f"{server.text}: RPC program {what.program}"
    if status == PROG_MISMATCH:
        versions = f"{reply.number()} to {reply.number()}"
        raise ProtocolError(f"{where} is there in versions {versions}, not {what.version}")
    if status == PROG_UNAVAIL:
        raise ProtocolError(f"{where} is not there; see what listens on this port")
    raise TroubleError(f"{where} answers with error {status}; see the server")


def _denial(server: Address, reply: Reader) -> AttemptError:
    if reply.number() == AUTH_ERROR:
        return AuthenticationError(f"{server.text}: the server wants another 'sec'")
    return ProtocolError(f"{server.text}: the server speaks another version of RPC")


def _port_of(universal: str) -> int:
    """Read the port of ADDRESS.HIGH.LOW. Source: RFC 5665 section 5.2.3."""
    try:
        high, low = map(int, universal.split(".")[-2:])
    except ValueError:
        return 0
    return high * 256 + low
