# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who calls, and who has left the bus."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from storaged_conn.bus.connection import Bus, CallError
from storaged_conn.bus.wire import Field, Message
from storaged_conn.names import DBUS

LEAVING: Final = f"type='signal',sender='{DBUS}',member='NameOwnerChanged',arg2=''"
"""Somebody has no owner any more; one rule for all, since a connection may have only 512."""

MAX_KNOWN: Final = 1024
"""Callers whose uid is remembered; more than ever call at one time."""


class Caller(NamedTuple):
    """A connection to the bus, by its unique name, and the uid that made it."""

    sender: str
    uid: int

    @property
    def trusted(self) -> bool:
        """Root, or the service's own user: may do everything, and needs no polkit."""
        return is_trusted(self.uid)


def is_trusted(uid: int) -> bool:
    """Say whether a user has all the rights of the service anyhow."""
    return uid in {0, os.geteuid()}


class Callers:
    """Asks the bus about its connections.

    Unique names are never used twice (D-Bus specification, Valid Bus Names), so what was learned of
    one stays true.
    """

    def __init__(self, bus: Bus) -> None:
        """Listen to the bus for those who leave."""
        self._bus = bus
        self._known: dict[str, Caller] = {}
        self._watched: dict[str, set[Callable[[str], None]]] = {}
        bus.listen(self._hear)

    def known(self, sender: str) -> Caller | None:
        """Give a caller that was met before, and not too long ago."""
        return self._known.get(sender)

    async def meet(self, sender: str) -> Caller | None:
        """Learn a caller's uid, as the bus saw it when the caller connected; None if it left."""
        try:
            (uid,) = await self._bus.ask("GetConnectionUnixUser", "s", sender)
        except CallError:
            return None
        if not isinstance(uid, int):
            return None
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        caller = self._known[sender] = Caller(sender, uid)
        return caller

    @asynccontextmanager
    async def present(self, sender: str) -> AsyncIterator[None]:
        """Cancel what is done here when the caller leaves: nobody is left to hear of it."""
        task = asyncio.current_task()

        def leave(_: str) -> None:
            if task:
                task.cancel()

        try:
            await self.watch(sender, leave)
            yield
        finally:
            self.unwatch(sender, leave)

    async def watch(self, sender: str, left: Callable[[str], None]) -> None:
        """Have a function called when a caller leaves the bus, also if it has left already."""
        if not self._watched:
            self._bus.tell("AddMatch", "s", LEAVING)
        self._watched.setdefault(sender, set()).add(left)
        if not await self.is_here(sender):
            self._leave(sender)

    def unwatch(self, sender: str, left: Callable[[str], None]) -> None:
        """Call it no more."""
        watchers = self._watched.get(sender, set())
        watchers.discard(left)
        if not watchers and self._watched.pop(sender, None) is not None and not self._watched:
            self._bus.tell("RemoveMatch", "s", LEAVING)

    async def is_here(self, sender: str) -> bool:
        """Say whether a caller is still on the bus."""
        (here,) = await self._bus.ask("NameHasOwner", "s", sender)
        return bool(here)

    def _hear(self, signal: Message) -> None:
        if signal.text(Field.MEMBER) != "NameOwnerChanged" or signal.text(Field.SENDER) != DBUS:
            return
        name, _, owner = signal.arguments()
        if not owner:
            self._leave(name)

    def _leave(self, sender: str) -> None:
        self._known.pop(sender, None)
        for left in tuple(self._watched.get(sender, ())):
            self.unwatch(sender, left)
            left(sender)
