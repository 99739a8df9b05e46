# SPDX-License-Identifier: LGPL-2.1-or-later
"""Follow all connections, whether the service stays, goes or comes back."""

from collections.abc import Callable
from dataclasses import dataclass

from storaged_conn.bus.connection import CallError
from storaged_conn.ctl.client import Client, Properties
from storaged_conn.ctl.watch import EVERYTHING, Change, Owner, Signals, apply
from storaged_conn.names import connection_id


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether the service runs: `first` where nothing was known before."""

    running: bool
    first: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """What happened to one connection.

    Attributes:
        before: its properties as they were, None where it was not there.
        after: its properties as they are, None where it is gone.
    """

    cid: str
    before: Properties | None
    after: Properties | None

    @property
    def changed(self) -> list[str]:
        """The names of the properties that differ, sorted."""
        before, after = self.before or {}, self.after or {}
        names = before.keys() | after.keys()
        return sorted(name for name in names if before.get(name) != after.get(name))


Event = Presence | Difference
View = dict[str, Properties]


class Monitor:
    """Reports each change of any connection, once."""

    def __init__(self, client: Client, report: Callable[[Event], None]) -> None:
        """Prepare to report."""
        self._client = client
        self._report = report
        self._signals = Signals(client)
        self._served_by = ""
        self._view: View | None = None

    async def run(self) -> None:
        """Report until the bus is gone.

        Raises:
            BusLostError: it is.
            CallError: the service runs, and does not let itself be read.
        """
        await self._signals.follow(EVERYTHING)
        if not self._signals.owner:
            await self._client.start()
        await self._turn(self._signals.owner, first=True)
        while True:
            match await self._signals.next():
                case Owner(name) if name != self._served_by:
                    await self._turn(name, first=False)
                case Owner():
                    pass  # it is known from `start`
                case change:
                    self._tell(change)

    async def _turn(self, owner: str, *, first: bool) -> None:
        self._served_by = owner
        fresh = await self._read(owner) if owner else None
        self._report(Presence(bool(owner), first))
        if fresh is None:
            return
        old, self._view = self._view, fresh
        if old is not None:  # what there is at first is no change
            for path in sorted(old.keys() | fresh.keys()):
                self._compare(path, old.get(path), fresh.get(path))

    async def _read(self, owner: str) -> View | None:
        try:
            view = await self._client.objects(owner)
        except CallError:
            if self._signals.owner == owner:
                raise
            return None  # it has gone meanwhile, and a signal waits that says so
        for change in self._signals.backlog():
            apply(change, view)
        return view

    def _tell(self, change: Change) -> None:
        if self._view is not None:
            before = self._view.get(change.path)
            apply(change, self._view)
            self._compare(change.path, before, self._view.get(change.path))

    def _compare(self, path: str, before: Properties | None, after: Properties | None) -> None:
        if before != after:
            self._report(Difference(connection_id(path) or path, before, after))
