# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much the bus keeps of our replies because their callers do not read them.

dbus-daemon counts what it keeps against the sender, and stops reading from a service for which it
keeps 127 MiB (max_incoming_bytes): a caller that asks and never reads would silence the service for
everybody. So who has had much and may not have read it gets no further reply before the bus says
that it was read. dbus-broker counts it against the user who does not read, keeps at most 512 MiB
for one (dbus-broker-launch 33, max_bytes), throws the rest away, and is not asked.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from storaged_conn.bus.connection import Bus, CallError
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
        self._refused: set[Caller] = set()
        self._news = asyncio.Event()
        self._measuring = False
        self._knows = True  # the bus can say what it keeps, as far as we know

    def sent(self, caller: Caller, size: int) -> None:
        """Count a reply whose body has so many bytes."""
        if not self._knows:
            return
        self._count(caller, size + OVERHEAD)
        if len(self._unread) > MAX_CALLERS:
            self._measure_soon()

    def has_room(self, caller: Caller) -> bool:
        """Say whether a caller may have another reply; if not, `room` will be called."""
        if self._is_free(caller):
            return True
        if caller not in self._refused:
            self._refused.add(caller)
            self._measure_soon()
        return False

    def may_hear(self, caller: Caller) -> bool:
        """Say whether a caller may have an error at least; it is small, but so many may be left."""
        return self._shares(caller, 2)

    def _is_free(self, caller: Caller) -> bool:
        return self._unread.get(caller, 0) < MAX_OF_CALLER and self._shares(caller, 1)

    def _shares(self, caller: Caller, times: int) -> bool:
        own = self._of_users[caller.uid]
        all_of_them = sum(size for uid, size in self._of_users.items() if uid)
        fits = own < times * MAX_OF_USER and all_of_them < MAX_IN_ALL + (times - 1) * MAX_OF_USER
        return caller.trusted or fits

    def _count(self, caller: Caller, size: int) -> None:
        left = self._unread.pop(caller, 0) + size
        if left > 0:
            self._unread[caller] = left
        self._of_users[caller.uid] += size
        if not self._of_users[caller.uid]:
            del self._of_users[caller.uid]

    def _measure_soon(self) -> None:
        self._news.set()
        if not self._measuring:
            self._measuring = True
            self._spawn(self._measure())

    async def _measure(self) -> None:
        """Have the bus say what it keeps, again and again while somebody gets nothing for it."""
        pause = AGAIN
        while True:
            self._news.clear()
            await self._ask()
            free = {caller for caller in self._refused if self._is_free(caller)}
            self._refused -= free
            if free:
                self._room()
            if not self._refused:
                break
            pause = AGAIN if free else min(2 * pause, LONGEST)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()
        self._measuring = False

    async def _ask(self) -> None:
        for caller, size in tuple(self._unread.items()):
            kept = await self._kept(caller.sender, size)
            self._count(caller, min(size, kept) - size)  # what was sent meanwhile stays counted

    async def _kept(self, sender: str, size: int) -> int:
        """Ask how many bytes the bus keeps for a caller; `size` where it does not say in time.

        Source: dbus, bus/stats.c, GetConnectionStats; dbus-broker has no such method.
        """
        where = (DBUS, DBUS_PATH, f"{DBUS}.Debug.Stats", "GetConnectionStats")
        try:
            (stats,) = await self._bus.call(where, "s", (sender,), timeout=LONGEST)
        except CallError as error:
            if error.name.endswith(".NoReply"):
                return size
            self._knows = error.name.endswith(".NameHasNoOwner")  # else nobody can be held
            return 0
        kept = stats.get("OutgoingBytes") if isinstance(stats, dict) else None
        return kept.value if kept else 0
