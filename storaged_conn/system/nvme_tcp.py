# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks an NVMe subsystem over TCP, from the event loop: may we connect, and what else is there.

The kernel would say so too, in /dev/nvme-fabrics; but it gives one error, EIO, for an unknown
subsystem, an unknown host and a wrong key, and makes a controller for each question, which udev and
everybody else hears of, and which cannot be cancelled. libnvme asks by way of the kernel as well,
and blocks. What is needed of the protocol is a greeting, Connect and Get Log Page.

Source: NVM Express TCP Transport Specification 1.0, 3.3 to 3.6 (the PDUs); NVM Express Base
Specification 2.0, 3.1.3.5 (properties), 5.16.1.23 (the discovery log), 6.3 (Connect), 8.13.3
(authentication). All numbers are little-endian.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from struct import Struct
from typing import Final, NamedTuple
from uuid import UUID

from storaged_conn.errors import (
    AccessDeniedError,
    AttemptError,
    BusyError,
    NotOfferedError,
    ProtocolError,
    ServerRefusedError,
    TimedOutError,
    TroubleError,
    UnreachableError,
)
from storaged_conn.system.sentinel import Address

DEADLINE: Final = 10.0
"""Seconds for all of it, which takes milliseconds. Source: drivers/nvme/host/tcp.c,
nvme_tcp_alloc_queue, where the kernel gives the greeting as much."""

MAX_PDU: Final = 1 << 20
"""Bytes; more than CHUNK and its headers."""

MAX_ALIGNMENT: Final = 31
"""Words of 4 bytes, less one. Source: TCP Transport Specification, 3.6.2.3, CPDA."""

CHUNK: Final = 4096
"""Bytes of the log that are asked for at a time; every controller can give as much at once."""

MAX_ENTRIES: Final = 4096
"""Entries of a log that are taken, of 1 KiB each."""

_COMMON: Final = Struct("<BBBBI")
IC_REQ, IC_RESP, TERMINATED, COMMAND, RESPONSE, DATA = 0x00, 0x01, 0x03, 0x04, 0x05, 0x07
_GREETING: Final = Struct("<HBBI112x")
_COMMAND: Final = Struct("<BBHB19xQI3xB24s")
_RESPONSE: Final = Struct("<QHHHH")
_DATA: Final = Struct("<HHII4x")
SUCCESS_FLAG: Final = 8

FABRICS: Final = 0x7F
GET_LOG_PAGE: Final = 0x02
SET_PROPERTY, CONNECT, GET_PROPERTY = 0x00, 0x01, 0x04
BY_SGL: Final = 0x40
IN_CAPSULE, TRANSPORT = 0x01, 0x5A

DISCOVERY_LOG: Final = 0x70
CC, CSTS = 0x14, 0x1C
ENABLE: Final = 0x460001
"""Entries of 64 and 16 bytes, and enabled. Source: 3.1.3.5, CC.IOSQES, CC.IOCQES, CC.EN."""
READY: Final = 1

_CONNECT: Final = Struct("<HHHBxI12x")
_CONNECT_DATA: Final = Struct("<16sH238x256s256s256x")
_PROPERTY: Final = Struct("<B3xIQ8x")
_LOG: Final = Struct("<BBHHHQ8x")
DYNAMIC: Final = 0xFFFF
DEPTH: Final = 31

INVALID_PARAMETERS, RESTART_DISCOVERY, INVALID_HOST = 0x182, 0x183, 0x184
HOST_NQN_AT: Final = range(512, 768)
"""Where the data of Connect has it, which is what an error points at."""
AUTHENTICATION: Final = 0b11 << 17
"""The bits of Connect's result that ask for it. Source: 6.3, ASCR and ATR."""

_ENTRY: Final = Struct("<BBBBHHHH20x32s192x256s256s256x")
KINDS: Final = {1: "referral", 2: "subsystem"}
TRANSPORT_TYPES: Final = {1: "rdma", 2: "fc", 3: "tcp"}


class Who(NamedTuple):
    """Who asks, and for which subsystem.

    Attributes:
        host_id: a UUID.
    """

    host_nqn: str
    host_id: str
    nqn: str


class Entry(NamedTuple):
    """A subsystem, or another discovery service.

    Attributes:
        kind: of KINDS.
        transport: of TRANSPORT_TYPES.
        service: a port's number; nothing or "none" for fc.
    """

    kind: str
    transport: str
    nqn: str
    address: str
    service: str


async def knock(server: Address, who: Who) -> bool:
    """See that a subsystem would let us in, as far as it says without a key.

    Args:
        server: its host is an address.
        who: we are, and the subsystem.

    Returns:
        Whether it asks for a key.

    Raises:
        AttemptError: it would not.
    """
    async with _conversation(server) as talk:
        return bool(await talk.connect(who) & AUTHENTICATION)


async def discover(server: Address, who: Who) -> list[Entry]:
    """Read the discovery log.

    Args:
        server: its host is an address.
        who: the subsystem is the discovery service's.

    Raises:
        AttemptError: there is none, or it does not answer.
    """
    async with _conversation(server) as talk:
        return await talk.entries(who)


class _Talk:
    """One admin queue."""

    def __init__(
        self, server: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._where = server.text
        self._reader = reader
        self._writer = writer
        self._number = 0
        self._alignment = 4

    async def greet(self) -> None:
        self._send(IC_REQ, _GREETING.pack(0, 0, 0, 0))
        kind, _, body = await self._receive()
        if kind != IC_RESP or len(body) != _GREETING.size:
            raise ProtocolError(f"{self._where}: what answers on this port is no NVMe subsystem")
        _, alignment, _, _ = _GREETING.unpack(body)
        if alignment > MAX_ALIGNMENT:
            raise ProtocolError(f"{self._where}: PDUs cannot be aligned so far; see the server")
        self._alignment = 4 * (alignment + 1)

    async def connect(self, who: Who) -> int:
        data = _CONNECT_DATA.pack(
            UUID(who.host_id).bytes, DYNAMIC, who.nqn.encode(), who.host_nqn.encode()
        )
        tail = _CONNECT.pack(0, 0, DEPTH, 0, 0)
        status, result, _ = await self._command(FABRICS, CONNECT, tail, data)
        if status:
            raise self._refusal(status, result, who)
        return result

    async def entries(self, who: Who) -> list[Entry]:
        await self.connect(who)
        await self.enable()
        header = await self.log(0, _ENTRY.size)
        count = int.from_bytes(header[8:16], "little")
        if count > MAX_ENTRIES:
            raise TroubleError(f"{self._where}: a log of {count} entries is too long; see it")
        log = bytearray(header)
        while left := (count + 1) * _ENTRY.size - len(log):
            log += await self.log(len(log), min(left, CHUNK))
        if await self.log(0, _ENTRY.size) != header:
            raise BusyError(f"{self._where}: its log changed while it was read; ask again")
        return list(_entries(bytes(log), count))

    async def enable(self) -> None:
        await self._good(FABRICS, SET_PROPERTY, _PROPERTY.pack(0, CC, ENABLE))
        ready = 0
        while not ready & READY:  # until the deadline of the whole
            ready, _ = await self._good(FABRICS, GET_PROPERTY, _PROPERTY.pack(0, CSTS, 0))

    async def log(self, offset: int, size: int) -> bytes:
        words = size // 4 - 1
        tail = _LOG.pack(DISCOVERY_LOG, 0, words, 0, 0, offset)
        _, data = await self._good(GET_LOG_PAGE, 0, tail, size=size)
        if len(data) != size:
            raise ProtocolError(f"{self._where}: the discovery log was cut off; see the server")
        return data

    async def _good(
        self, operation: int, kind: int, tail: bytes, *, size: int = 0
    ) -> tuple[int, bytes]:
        status, result, data = await self._command(operation, kind, tail, size=size)
        if status:
            raise ProtocolError(f"{self._where}: NVMe status {status:#x}; see the server")
        return result, data

    async def _command(
        self, operation: int, kind: int, tail: bytes, data: bytes = b"", *, size: int = 0
    ) -> tuple[int, int, bytes]:
        """Send a command; gives its status, its result and its data."""
        self._number += 1
        how = IN_CAPSULE if data else TRANSPORT
        length = len(data) or size
        head = (operation, BY_SGL, self._number, kind, 0, length, how, tail)
        self._send(COMMAND, _COMMAND.pack(*head), data)
        read = bytearray()
        while True:
            answer, flags, body = await self._receive()
            if answer == DATA:
                read += body[_DATA.size :]
                if flags & SUCCESS_FLAG:
                    return 0, 0, bytes(read)
            elif answer == RESPONSE and len(body) == _RESPONSE.size:
                result, _, _, _, status = _RESPONSE.unpack(body)
                return status >> 1 & 0x7FF, result, bytes(read)
            else:
                raise ProtocolError(f"{self._where}: NVMe PDU {answer:#x}; see the server")
            if len(read) > CHUNK:
                raise ProtocolError(f"{self._where}: more data than was asked for; see the server")

    def _send(self, kind: int, body: bytes, data: bytes = b"") -> None:
        size = _COMMON.size + len(body)
        pad = bytes(-size % self._alignment) if data else b""
        offset = size + len(pad) if data else 0
        length = size + len(pad) + len(data)
        self._writer.write(_COMMON.pack(kind, 0, size, offset, length) + body + pad + data)

    async def _receive(self) -> tuple[int, int, bytes]:
        common = await self._reader.readexactly(_COMMON.size)
        kind, flags, header, offset, length = _COMMON.unpack(common)
        if not _COMMON.size <= header <= length <= MAX_PDU or offset > length:
            raise ProtocolError(f"{self._where}: what answers on this port is no NVMe subsystem")
        body = await self._reader.readexactly(length - _COMMON.size)
        pad = max(offset, header) - header  # what a DATA PDU has between its header and its data
        return kind, flags, body[: header - _COMMON.size] + body[header - _COMMON.size + pad :]

    def _refusal(self, status: int, result: int, who: Who) -> AttemptError:
        """Make an error of a refused Connect. Source: 6.3; status 0x182 points at the mistake."""
        place = result & 0xFFFF
        if status == INVALID_HOST or (status == INVALID_PARAMETERS and place in HOST_NQN_AT):
            return AccessDeniedError(
                f"{self._where}: {who.nqn} does not let this host in, which is {who.host_nqn};"
                " allow it there, or give another 'host-nqn'"
            )
        if status in {INVALID_PARAMETERS, RESTART_DISCOVERY}:
            return NotOfferedError(f"{self._where}: there is no {who.nqn}; see Discover")
        return TroubleError(f"{self._where}: Connect ends with NVMe status {status:#x}; see it")


@asynccontextmanager
async def _conversation(server: Address) -> AsyncIterator[_Talk]:
    """Connect, greet, and leave."""
    try:
        async with asyncio.timeout(DEADLINE):
            reader, writer = await asyncio.open_connection(*server)
            try:
                talk = _Talk(server, reader, writer)
                await talk.greet()
                yield talk
            finally:
                writer.transport.abort()
                with suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        raise TimedOutError(
            f"{server.text}: no answer in NVMe/TCP within {DEADLINE:g} s; see the server"
        ) from None
    except ConnectionRefusedError:
        raise ServerRefusedError(
            f"{server.text}: nothing answers on this port; see the server"
        ) from None
    except asyncio.IncompleteReadError:
        raise ProtocolError(f"{server.text}: it hung up; is it an NVMe subsystem?") from None
    except OSError as error:
        raise UnreachableError(f"{server.text}: {error}; see the server and the network") from None


def _entries(log: bytes, count: int) -> Iterator[Entry]:
    """Read the entries that are of use. Source: 5.16.1.23, figures 264 and 265."""
    for number in range(1, count + 1):
        fields = _ENTRY.unpack_from(log, number * _ENTRY.size)
        transport, kind = TRANSPORT_TYPES.get(fields[0]), KINDS.get(fields[2])
        service, nqn, address = (_text(raw) for raw in fields[8:])
        if transport and kind:
            yield Entry(kind, transport, nqn, address, service)


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode(errors="replace").strip()
