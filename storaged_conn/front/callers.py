# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who calls, and who has left the bus."""

from collections.abc import Callable
from typing import Final

from storaged_conn.bus.connection import Bus, CallError
from storaged_conn.bus.wire import Field, Message
from storaged_conn.names import DBUS

LEAVING: Final = f"type='signal',sender='{DBUS}',member='NameOwnerChanged',arg2=''"
"""Somebody has no owner any more; one rule for all, since a connection may have only 512."""


class Callers:
    """Asks the bus about its connections; unique names are never used twice."""

    def __init__(self, bus: Bus) -> None:
        """Listen to the bus for those who leave."""
        self._bus = bus
        self._watched: dict[str, set[Callable[[str], None]]] = {}
        bus.listen(self._hear)

    async def uid(self, sender: str) -> int | None:
        """Give a caller's uid, as the bus saw it when the caller connected; None if it left."""
        try:
            (uid,) = await self._bus.ask("GetConnectionUnixUser", "s", sender)
        except CallError:
            return None
        return uid if isinstance(uid, int) else None

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
        for left in tuple(self._watched.get(sender, ())):
            self.unwatch(sender, left)
            left(sender)
