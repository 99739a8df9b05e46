# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host has connected and no id manages, under temporary ids that clients cannot choose."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from storaged_conn.core.machine import IN_FLIGHT, State
from storaged_conn.core.model import Foreign, Present, Record, Topic
from storaged_conn.drivers.base import Driver
from storaged_conn.runner import Runner

PREFIX: Final = "unmanaged/"
"""No client's id has a slash."""


class Listener(Protocol):
    """Who wants to know."""

    def added(self, cid: str) -> None:
        """Hear of a new connection."""

    def changed(self, cid: str) -> None:
        """Hear that something about a connection may have changed."""

    def removed(self, cid: str) -> None:
        """Hear that a connection is gone."""


@dataclass(frozen=True, slots=True)
class View:
    """One connection as it is shown: managed (record and runner), ending (runner), or foreign."""

    cid: str
    record: Record | None = None
    runner: Runner | None = None
    foreign: Foreign | None = None

    @property
    def uri(self) -> str:
        """What is connected, in canonical form."""
        if self.foreign:
            return self.foreign.uri
        return self.runner.target.uri if self.runner else ""

    @property
    def owner(self) -> int | None:
        """The uid that manages it, or managed it last while it is ending; None is unknown."""
        if self.record:
            return self.record.owner
        return self.runner.last_owner if self.runner else None

    @property
    def present(self) -> Present | None:
        """What the kernel has."""
        if self.foreign:
            return self.foreign.present
        return self.runner.present if self.runner else None


class Unmanaged:
    """Keeps the listing of the unmanaged in step with the kernel and with the runners.

    Attributes:
        listeners: who is told of changes.
        views: the unmanaged connections by their temporary ids.
    """

    def __init__(self, drivers: Sequence[Driver]) -> None:
        """The listing is empty before the first `refresh`."""
        self.listeners: list[Listener] = []
        self.views: dict[str, View] = {}
        self._drivers = drivers
        self._claims: dict[Runner, str] = {}
        self._claimed: Counter[str] = Counter()
        self._ending: set[Runner] = set()
        self._echoing: dict[Runner, frozenset[Topic]] = {}
        self._due = False

    def claim(self, runner: Runner) -> None:
        """Learn what a runner has now, and whether anybody still wants it."""
        present, held = runner.present, bool(runner.machine.holders)
        old = self._claims.pop(runner, "")
        echoed = self._echoing.pop(runner, None)
        if runner.machine.state in IN_FLIGHT:
            self._echoing[runner] = runner.driver.topics(runner.target)
        if old:
            self._claimed[old] -= 1
            if not self._claimed[old]:
                del self._claimed[old]
        ending = runner in self._ending
        self._ending.discard(runner)
        if present and held:
            self._claims[runner] = present.name
            self._claimed[present.name] += 1
        elif present and runner.machine.state is not State.ABSENT:
            self._ending.add(runner)
        shows = self._claims.get(runner, "") != old or ending or runner in self._ending
        if shows or (echoed and runner not in self._echoing):
            self.refresh_soon()

    def refresh_soon(self) -> None:
        """Refresh once in the next turn of the loop, however often this is called until then."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self.refresh)

    def refresh(self) -> None:
        """Find what is there, and tell of the difference."""
        self._due = False
        before, self.views = self.views, {view.cid: view for view in self._find()}
        for listener in self.listeners:
            for cid in before.keys() - self.views.keys():
                listener.removed(cid)
            for cid, view in self.views.items():
                if cid not in before:
                    listener.added(cid)
                elif view.runner or view != before[cid]:
                    listener.changed(cid)

    def _find(self) -> Iterator[View]:
        known = self._claimed.keys() | {one.present.name for one in self._ending if one.present}
        # what appears where an operation of ours is at work is its echo until it has ended
        echoes = frozenset().union(*self._echoing.values())
        for driver in self._drivers:
            for foreign in driver.foreign(known):
                name = foreign.present.name
                if name not in known and foreign.place not in echoes:
                    yield View(PREFIX + name, foreign=foreign)
        for runner in self._ending:
            if runner.present and runner.present.name not in self._claimed:
                yield View(PREFIX + runner.present.name, runner=runner)
