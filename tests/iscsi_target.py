# SPDX-License-Identifier: LGPL-2.1-or-later
"""A target's side of the login phase, on loopback, written from RFC 7143, not from our client."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from storaged_conn.system.sentinel import Address
from tests.system.ports import turns

KEYS = dict[str, str]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Account:
    """What CHAP needs; the last two are what the target proves itself with."""

    username: str
    password: str
    username_in: str = ""
    password_in: str = ""


@dataclass
class Portal:
    """One portal and its targets.

    Attributes:
        status: what every login is answered, by the name of the target.
        moved: where a target has gone.
        said: all keys of all requests.
        sessions: logins that came to their end.
        logouts: sessions that were ended as they should be.
    """

    targets: dict[str, Account | None]
    status: dict[str, tuple[int, int]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    group: int = 1
    said: list[KEYS] = field(default_factory=list)
    sessions: int = 0
    logouts: int = 0
    address: Address = field(default_factory=lambda: Address("", 0))
    chunk: int = 8192

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await _Login(self, reader, writer).run()


@asynccontextmanager
async def serving(serve: Serve, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Address]:
    """Serve, on a free port by default; in the end all connections have been closed."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async with await asyncio.start_server(handle, host, port) as server:
        yield Address(*server.sockets[0].getsockname())
        await turns()  # those who have connected just now
        await asyncio.gather(*filter(None, tasks))


@asynccontextmanager
async def portal(targets: dict[str, Account | None]) -> AsyncIterator[Portal]:
    """Serve on a free port."""
    found = Portal(targets)
    async with serving(found.serve) as found.address:
        yield found


class _Login:
    def __init__(
        self, portal: Portal, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.portal, self.reader, self.writer = portal, reader, writer
        self.serial = 100
        self.account: Account | None = None
        self.name = ""
        self.challenge = os.urandom(16)

    async def run(self) -> None:
        while True:
            header = await self.reader.readexactly(48)
            size = int.from_bytes(header[5:8])
            data = (await self.reader.readexactly(size + -size % 4))[:size]
            assert int.from_bytes(header[28:32]) in {0, self.serial}, "ExpStatSN"
            keys = dict(one.split("=", 1) for one in data.decode().split("\0") if one)
            if not self.answer(header, keys):
                return

    def answer(self, header: bytes, keys: KEYS) -> bool:
        match header[0] & 0x3F:
            case 0x03:
                self.portal.said.append(keys)
                return self.log_in(header, keys)
            case 0x04:
                self.list_targets(header)
                return True
            case _:
                self.portal.logouts += 1
                self.say(0x26, 0x80, b"", header)
                return False

    def log_in(self, header: bytes, keys: KEYS) -> bool:
        stage, moving = (header[1] >> 2) & 3, header[1] & 3 if header[1] & 0x80 else None
        said: KEYS = {}
        status = (0, 0)
        if "InitiatorName" in keys:
            said, status = self.begin(keys)
        elif "CHAP_A" in keys:
            said = {"CHAP_A": "5", "CHAP_I": "77", "CHAP_C": f"0x{self.challenge.hex()}"}
        elif "CHAP_R" in keys:
            said, status = self.prove(keys)
        elif stage == 1 and keys:
            said = {"HeaderDigest": "None", "DataDigest": "None"}
        self.portal.sessions += moving == 3
        flags = stage << 2 | (0x80 | moving if moving is not None and status == (0, 0) else 0)
        text = "".join(f"{key}={value}\0" for key, value in said.items()).encode()
        self.say(0x23, flags, text, header, status)
        return status == (0, 0)

    def begin(self, keys: KEYS) -> tuple[KEYS, tuple[int, int]]:
        self.name = name = keys.get("TargetName", "")
        if name in self.portal.moved:
            return {"TargetAddress": self.portal.moved[name]}, (1, 1)
        if name in self.portal.status:
            return {}, self.portal.status[name]
        if name not in self.portal.targets:
            return {}, (2, 3)
        self.account = self.portal.targets[name]
        group = {"TargetPortalGroupTag": str(self.portal.group)} if name else {}
        if self.account is None:
            return {"AuthMethod": "None"} | group, (0, 0)
        if "CHAP" not in keys["AuthMethod"]:
            return {}, (2, 1)
        return {"AuthMethod": "CHAP"} | group, (0, 0)

    def prove(self, keys: KEYS) -> tuple[KEYS, tuple[int, int]]:
        assert self.account is not None
        wanted = hashlib.md5(b"\x4d" + self.account.password.encode() + self.challenge).hexdigest()
        if (keys["CHAP_N"], keys["CHAP_R"]) != (self.account.username, f"0x{wanted}"):
            return {}, (2, 1)
        if "CHAP_C" not in keys:
            return {}, (0, 0)
        asked = bytes([int(keys["CHAP_I"])]) + self.account.password_in.encode()
        proof = hashlib.md5(asked + bytes.fromhex(keys["CHAP_C"][2:])).hexdigest()
        return {"CHAP_N": self.account.username_in, "CHAP_R": f"0x{proof}"}, (0, 0)

    def list_targets(self, header: bytes) -> None:
        host, port = self.portal.address
        listed = "".join(
            f"TargetName={name}\0TargetAddress={host}:{port},{self.portal.group}\0"
            for name in self.portal.targets if name
        ).encode()  # fmt: skip
        tag = int.from_bytes(header[20:24])
        begin = 0 if tag == 0xFFFFFFFF else tag
        end = begin + self.portal.chunk
        last = end >= len(listed)
        flags, more = (0x80, 0xFFFFFFFF) if last else (0x40, end)
        self.say(0x24, flags, listed[begin:end], header, target_tag=more)

    def say(
        self,
        kind: int,
        flags: int,
        data: bytes,
        header: bytes,
        status: tuple[int, int] = (0, 0),
        target_tag: int = 0,
    ) -> None:
        start = bytes([kind, flags, 0, 0]) + len(data).to_bytes(4) + header[8:14] + bytes([0, 1])
        numbers = header[16:20] + target_tag.to_bytes(4) + self.serial.to_bytes(4)
        rest = (start + numbers).ljust(36, b"\0") + bytes(status)
        self.writer.write(rest.ljust(48, b"\0") + data + bytes(-len(data) % 4))
        self.serial += 1
