# SPDX-License-Identifier: LGPL-2.1-or-later
"""A secret with a mark, and where it could show."""

import asyncio
import base64
import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus
from storaged_conn.bus.wire import Kind, Variant
from storaged_conn.names import DBUS, DBUS_PATH
from tests.live import DEADLINE


class Tap(Bus):
    """Sees all messages of a bus. Source: D-Bus specification, Monitoring.BecomeMonitor."""

    def __init__(self, sock: socket.socket, max_message: int) -> None:
        super().__init__(sock, max_message)
        self.on_call = self.on_oversize = lambda call: None  # who monitors must not answer
        self.seen: list[tuple[wire.Message, bytes]] = []
        self.news = asyncio.Event()

    async def monitor(self) -> None:
        where = (DBUS, DBUS_PATH, f"{DBUS}.Monitoring", "BecomeMonitor")
        await self.call(where, "asu", [[], 0], timeout=DEADLINE)

    async def sees(self, text: bytes) -> None:
        """Return when an error reply has had this text: all that was sent before was seen."""
        async with asyncio.timeout(DEADLINE):
            while not any(one.kind == Kind.ERROR and text in raw for one, raw in self.seen):
                self.news.clear()
                await self.news.wait()

    def _take(self, head: bytes, body: bytes, *, oversize: bool) -> None:
        self.seen.append((wire.parse(head, body), head + body))
        self.news.set()
        super()._take(head, body, oversize=oversize)


class Canary:
    """A mark that is nowhere else on this machine, and what it may look like."""

    def __init__(self) -> None:
        self.text = f"canary-{secrets.token_hex(12)}"
        raw = self.text.encode()
        coded = (raw.hex().encode(), base64.b64encode(raw).rstrip(b"="))
        self.forms = (
            raw,
            *coded,
            repr(list(raw)).strip("[]").encode(),
            raw.decode().encode("utf-16-le"),
        )

    @property
    def secret(self) -> object:
        return Variant("ay", self.text.encode())

    def is_in(self, content: bytes) -> bool:
        return any(form in content for form in self.forms)


def processes() -> Iterator[tuple[Path, bytes]]:
    """Give how all processes of this machine were started. Source: proc(5)."""
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with suppress(OSError):  # it has ended
                yield process / name, (process / name).read_bytes()
