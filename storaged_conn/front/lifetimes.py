# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long a record lives: for ever, until reboot, or until its caller leaves the bus."""

from collections.abc import Mapping

from storaged_conn.core.model import Lifetime, Record
from storaged_conn.errors import NotFoundError, StoreError
from storaged_conn.front.callers import Callers
from storaged_conn.manager import Manager
from storaged_conn.runner import Spawn


class Lifetimes:
    """Binds records to this boot and to their callers, and ends those that are over."""

    def __init__(self, boot: str, bus: str, callers: Callers) -> None:
        """Make the scopes of this run.

        Args:
            boot: this boot's id; see random(4), boot_id.
            bus: the message bus's id; unique names are unique on one bus only.
            callers: who tells when a caller leaves.
        """
        self._boot = boot
        self._bus = bus
        self._callers = callers
        self._manager: Manager | None = None
        self._spawn: Spawn | None = None

    def begin(self, manager: Manager, spawn: Spawn) -> None:
        """End records in this manager from now on."""
        self._manager, self._spawn = manager, spawn

    def scopes(self, sender: str) -> Mapping[Lifetime, str]:
        """Say what each lifetime would bind a record of this caller to."""
        return {
            Lifetime.PERSISTENT: "",
            Lifetime.RUNTIME: self._boot,
            Lifetime.CALLER: f"{self._bus} {sender}",
        }

    async def is_alive(self, record: Record) -> bool:
        """Say whether a record from the store still holds."""
        match record.lifetime:
            case Lifetime.PERSISTENT:
                return True
            case Lifetime.RUNTIME:
                return record.scope == self._boot
            case Lifetime.CALLER:
                bus, _, sender = record.scope.partition(" ")
                return bus == self._bus and await self._callers.is_here(sender)

    async def follow(self, record: Record) -> None:
        """End a record when its caller leaves, if that is its lifetime."""
        if record.lifetime is Lifetime.CALLER:
            await self._callers.watch(record.scope.partition(" ")[2], self._left)

    def _left(self, sender: str) -> None:
        if self._manager and self._spawn:
            for cid in self._manager.of_scope(f"{self._bus} {sender}"):
                self._spawn(self._end(self._manager, cid))

    async def _end(self, manager: Manager, cid: str) -> None:
        try:
            await manager.unmanage(cid)
        except (NotFoundError, StoreError):
            return  # gone already; or it stays in the store, and the next start ends it
