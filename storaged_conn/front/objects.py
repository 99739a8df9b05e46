# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the bus is told of the connections: fragments marshalled on change, and signals.

Every property is marshalled once, when it changes; List, GetManagedObjects, GetAll and the signals
are joined from those bytes. Changes of one object are gathered: the first is published at once, in
the same turn of the loop, further ones at most every PAUSE seconds, and the last always.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus
from storaged_conn.bus.wire import Entry
from storaged_conn.front.contract import Interface
from storaged_conn.names import CONNECTION, OBJECT_MANAGER, PROPERTIES, ROOT, object_path

PAUSE: Final = 0.05
"""Seconds between two signals of one object: 20 a second is more than a person sees, and a burst
of changes is one signal. Source: the issue Spine."""

LISTED: Final = {
    "Connected": "connected",
    "Managed": "managed",
    "LastError": "lastError",
    "ConnectionInfo": "connectionInfo",
}
"""The properties that List shows, with their names there (from the RFC of 2012)."""

Describe = Callable[[str], Mapping[str, object] | None]
"""Gives all properties of a connection, or None where there is none."""


@dataclass(slots=True)
class _Object:
    entries: dict[str, Entry]
    listed: Entry
    managed: Entry
    sent: dict[str, Entry] = field(default_factory=dict)
    quiet_until: float = 0.0


class Objects:
    """The connection objects as the bus sees them; a Listener of the manager."""

    def __init__(self, bus: Bus, interface: Interface, describe: Describe) -> None:
        """Signals are sent only after `announce`."""
        self._bus = bus
        self._properties = interface.properties
        self._signalled = {
            name for name, one in interface.properties.items() if one.emits == "true"
        }
        self._describe = describe
        self._objects: dict[str, _Object] = {}
        self._bodies: dict[str, bytes] = {}
        self._stale: set[str] = set()
        self._fresh: set[str] = set()
        self._unsent: set[str] = set()
        self._due = False
        self._timer: asyncio.TimerHandle | None = None
        self._announcing = False

    def announce(self) -> None:
        """Send signals from now on: the bus name is ours, so somebody can ask."""
        self._announcing = True
        for one in self._objects.values():
            one.sent = dict(one.entries)  # what is there now is what can be seen first

    # what the manager tells

    def added(self, cid: str) -> None:
        """See unmanaged.Listener."""
        described = self._describe(cid)
        if described is None:
            return
        self._bodies.clear()
        one = self._objects[cid] = self._render(cid, described, {})
        one.sent = dict(one.entries)
        if self._announcing:
            # as a body, a path and a dictionary of entries is an oa{sa{sv}}
            self._signal(OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", one.managed)

    def changed(self, cid: str) -> None:
        """See unmanaged.Listener."""
        if cid in self._objects:
            self._stale.add(cid)
            if not self._due:
                self._due = True
                asyncio.get_running_loop().call_soon(self._flush_fresh)

    def removed(self, cid: str) -> None:
        """See unmanaged.Listener."""
        if self._objects.pop(cid, None) is None:
            return
        self._bodies.clear()
        self._stale.discard(cid)
        if self._announcing:
            body = wire.marshal("oas", (object_path(cid), [CONNECTION]))
            self._signal(OBJECT_MANAGER, "InterfacesRemoved", "oas", body)

    # what the bus asks

    def has(self, cid: str) -> bool:
        """Say whether there is such an object."""
        return cid in self._objects

    def ids(self) -> list[str]:
        """Give the ids of all objects."""
        return list(self._objects)

    def list_body(self) -> bytes:
        """Marshal List's reply."""
        self._refresh()
        self._show(self._fresh | self._unsent)
        return self._joined("List", lambda one: one.listed)

    def managed_body(self) -> bytes:
        """Marshal GetManagedObjects' reply."""
        self._refresh()
        self._show(self._fresh | self._unsent)
        return self._joined("GetManagedObjects", lambda one: one.managed)

    def all_body(self, cid: str) -> bytes:
        """Marshal GetAll's reply."""
        self._refresh()
        self._show({cid} & (self._fresh | self._unsent))
        return wire.array(self._objects[cid].entries.values())

    # inside

    def _show(self, cids: set[str]) -> None:
        """Remember that somebody has seen what no signal has told yet.

        If it is taken back before the next signal, that signal must say so.
        """
        for cid in cids & self._objects.keys():
            one = self._objects[cid]
            told = one.sent.items() & one.entries.items()
            one.sent = dict(told)

    def _joined(self, name: str, part: Callable[[_Object], Entry]) -> bytes:
        if name not in self._bodies:
            self._bodies[name] = wire.array(map(part, self._objects.values()))
        return self._bodies[name]

    def _refresh(self) -> None:
        """Marshal what has changed."""
        if self._stale:
            self._bodies.clear()
        for cid in self._stale:
            described = self._describe(cid)
            if described is not None:
                old = self._objects[cid]
                new = self._render(cid, described, old.entries)
                new.sent, new.quiet_until = old.sent, old.quiet_until
                self._objects[cid] = new
                self._fresh.add(cid)
        self._stale.clear()

    def _render(
        self, cid: str, described: Mapping[str, object], old: Mapping[str, Entry]
    ) -> _Object:
        entries = {
            name: old[name]
            if one.emits == "const" and name in old
            else wire.entry(name, one.signature, described[name])
            for name, one in self._properties.items()
        }
        listed = (
            wire.entry(alias, self._properties[name].signature, described[name])
            for name, alias in LISTED.items()
        )
        interface = wire.nest(CONNECTION, entries.values())
        return _Object(entries, wire.nest(cid, listed), wire.nest(object_path(cid), [interface]))

    def _flush_fresh(self) -> None:
        """Publish what has just changed, unless it was published a moment ago."""
        self._due = False
        self._refresh()
        fresh, self._fresh = self._fresh, set()
        self._flush(fresh)

    def _flush_rest(self) -> None:
        """Publish what had to wait."""
        self._timer = None
        rest, self._unsent = self._unsent, set()
        self._flush(rest)

    def _flush(self, cids: set[str]) -> None:
        now = asyncio.get_running_loop().time()
        for cid in cids & self._objects.keys():
            one = self._objects[cid]
            # where the bus is slow, the last state is what counts, and it can wait
            if one.quiet_until > now or self._bus.congested:
                self._unsent.add(cid)
            else:
                self._publish(cid, one, now)
        if self._unsent and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(now + PAUSE, self._flush_rest)

    def _publish(self, cid: str, one: _Object, now: float) -> None:
        changes = {
            name: entry
            for name, entry in one.entries.items()
            if name in self._signalled and one.sent.get(name) != entry
        }
        if not changes or not self._announcing:
            return
        one.sent = dict(one.entries)
        one.quiet_until = now + PAUSE
        body = wire.changed(CONNECTION, changes.values())
        self._bus.signal(object_path(cid), PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def _signal(self, interface: str, member: str, signature: str, body: bytes) -> None:
        self._bus.signal(ROOT, interface, member, signature, body)
