# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much the bus keeps of our replies because their callers do not read them.

dbus-daemon counts what it keeps against the sender, and stops reading from a service for which it
keeps 127 MiB (max_incoming_bytes): a caller that asks and never reads would silence the service for
everybody. So who has had much and may not have read it gets no further reply before the bus says
that it was read. dbus-broker counts it against the one who does not read, and is not asked.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from storaged_conn.bus.connection import Bus, BusLostError, CallError
from storaged_conn.front.callers import Caller
from storaged_conn.names import DBUS, DBUS_PATH
from storaged_conn.runner import Spawn

MAX_OF_CALLER: Final = 2**20
"""Bytes that a caller may leave unread and still get a reply, whose size comes on top."""

MAX_OF_USER: Final = 2**24
"""Bytes that the callers of one user may leave unread together, but for root's."""

MAX_IN_ALL: Final = 2**26
"""Bytes that all callers but root's may leave unread: half of what dbus-daemon keeps."""

MAX_CALLERS: Final = 1024
"""Callers of which this is remembered before the bus is asked about all of them."""

OVERHEAD: Final = 256
"""Bytes that a reply has beside its body, in the bus's memory."""

AGAIN: Final = 0.05
LONGEST: Final = 1.0
"""Seconds until the bus is asked again about those who still do not read, the first time and at
most: it tells nobody by itself when they do."""


class Flight:
    """Counts replies, and has the bus say what became of them."""

    def __init__(self, bus: Bus, spawn: Spawn, room: Callable[[], None]) -> None:
        """Begin with none; `room` is called when somebody may have another reply."""
        self._bus = bus
        self._room = room
        self._spawn = spawn
        self._unread: dict[Caller, int] = {}
        self._of_users: Counter[int] = Counter()
        self._measuring = False
        self._pause = AGAIN

    def sent(self, caller: Caller, size: int) -> None:
        """Count a reply whose body has so many bytes."""
        self._count(caller, size + OVERHEAD)
        if len(self._unread) > MAX_CALLERS:
            self._measure_soon()

    def has_room(self, caller: Caller) -> bool:
        """Say whether a caller may have another reply; if not, `room` will be called."""
        others = sum(size for uid, size in self._of_users.items() if uid)
        room = self._unread.get(caller, 0) < MAX_OF_CALLER and (
            caller.trusted or (self._of_users[caller.uid] < MAX_OF_USER and others < MAX_IN_ALL)
        )
        if not room:
            self._measure_soon()
        return room

    def _count(self, caller: Caller, size: int) -> None:
        left = self._unread.pop(caller, 0) + size
        if left > 0:
            self._unread[caller] = left
        self._of_users[caller.uid] += size
        if not self._of_users[caller.uid]:
            del self._of_users[caller.uid]

    def _measure_soon(self) -> None:
        if not self._measuring:
            self._measuring = True
            self._spawn(self._measure())

    async def _measure(self) -> None:
        before = sum(self._unread.values())
        for caller, size in tuple(self._unread.items()):
            kept = await self._kept(caller.sender)
            self._count(caller, min(size, kept) - size)  # what was sent meanwhile stays counted
        read = sum(self._unread.values()) < before
        self._pause = AGAIN if read else min(2 * self._pause, LONGEST)
        asyncio.get_running_loop().call_later(0 if read else self._pause, self._measured)

    def _measured(self) -> None:
        self._measuring = False
        self._room()

    async def _kept(self, sender: str) -> int:
        """Ask how many bytes the bus keeps for a caller.

        Source: dbus, bus/stats.c, GetConnectionStats; others have no such method or member.
        """
        where = (DBUS, DBUS_PATH, f"{DBUS}.Debug.Stats", "GetConnectionStats")
        try:
            (stats,) = await self._bus.call(where, "s", (sender,), timeout=LONGEST)
        except (CallError, BusLostError):
            return 0  # it has left, or this bus does not say
        kept = stats.get("OutgoingBytes") if isinstance(stats, dict) else None
        return kept.value if kept else 0
