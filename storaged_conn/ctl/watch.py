# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service's signals, in the order in which they came.

What is read by a call and what signals say cannot be put in order by us: a signal that arrives
together with the reply may be older or newer. So follow the signals first, make the call, and apply
to its reply what came meanwhile (`backlog`). That may step back for a moment, never for long: what
changed after the last signal is sent in another one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from storaged_conn.bus.connection import BusLostError
from storaged_conn.bus.wire import Field, MalformedError, Message, plain
from storaged_conn.ctl.client import Client, Properties, read_connection, read_properties
from storaged_conn.names import (
    CONNECTION,
    DBUS,
    OBJECT_MANAGER,
    PROPERTIES,
    ROOT,
    SERVICE,
)

MAX_BACKLOG: Final = 100_000
"""Signals that wait while a call is made; a bus carries a quarter of that in a second."""

OWNER_CHANGES: Final = (
    f"sender='{DBUS}',interface='{DBUS}',member='NameOwnerChanged',arg0='{SERVICE}'"
)
"""The match rule for the coming and going of the service."""

EVERYTHING: Final = f"sender='{SERVICE}',path_namespace='{ROOT}'"
"""The match rule for all its signals."""


@dataclass(frozen=True, slots=True)
class Added:
    """A connection is there, with all its properties."""

    path: str
    properties: Properties


@dataclass(frozen=True, slots=True)
class Changed:
    """Some properties of a connection have new values."""

    path: str
    properties: Properties


@dataclass(frozen=True, slots=True)
class Removed:
    """A connection is gone."""

    path: str


@dataclass(frozen=True, slots=True)
class Owner:
    """The service has come, with this unique name, or has gone, with none."""

    name: str


Change = Added | Changed | Removed
Signal = Change | Owner


class Signals:
    """What the service signals, and nobody else.

    Attributes:
        owner: the unique name of the service, empty where it does not run.
    """

    def __init__(self, client: Client) -> None:
        """Listen on the client's bus; `follow` says to what."""
        self.owner = ""
        self._client = client
        self._queue: deque[Signal] = deque()
        self._news = asyncio.Event()
        client.bus.listen(self._take)
        client.bus.lost.add_done_callback(lambda _: self._news.set())

    async def follow(self, *rules: str) -> None:
        """Have the bus deliver what matches, and whether the service comes or goes. Call once."""
        await self._client.match([OWNER_CHANGES, *rules])
        owner = await self._client.owner()
        if not self._queue:  # else a signal has said who, and not earlier than this reply
            self.owner = owner

    async def next(self) -> Signal:
        """Wait for a signal.

        Raises:
            BusLostError: there will be no more.
        """
        lost = self._client.bus.lost
        while not self._queue:
            if lost.done():
                raise BusLostError(str(lost.exception()))
            self._news.clear()
            await self._news.wait()
        return self._queue.popleft()

    def backlog(self) -> Iterator[Change]:
        """Take the changes that wait, up to where the service came or went."""
        while self._queue:
            signal = self._queue[0]
            if isinstance(signal, Owner):
                return
            self._queue.popleft()
            yield signal

    def _take(self, message: Message) -> None:
        try:
            signal = self._read(message)
        except MalformedError:
            return
        if signal is None:
            return
        if isinstance(signal, Owner):
            self.owner = signal.name
        self._queue.append(signal)
        self._news.set()
        if len(self._queue) > MAX_BACKLOG:
            self._client.bus.close(BusLostError("changes come faster than they can be read"))

    def _read(self, message: Message) -> Signal | None:
        # What is sent to us directly needs no match rule: anybody can send it.
        by = {DBUS: _FROM_BUS, self.owner: _FROM_SERVICE}.get(message.text(Field.SENDER), {})
        member = f"{message.text(Field.INTERFACE)}.{message.text(Field.MEMBER)}"
        read = by.get((member, message.text(Field.SIGNATURE)))
        if read is None:
            return None
        return read(message.text(Field.PATH), [plain(one) for one in message.arguments()])


def apply(change: Change, view: dict[str, Properties]) -> None:
    """Bring what is known up to date."""
    match change:
        case Added(path, properties):
            view[path] = properties
        case Changed(path, properties):
            if path in view:  # else it is gone already
                view[path] = view[path] | properties
        case Removed(path):
            view.pop(path, None)


def _owner(_: str, arguments: list[object]) -> Signal | None:
    name, _before, owner = arguments
    return Owner(str(owner)) if name == SERVICE else None


def _added(_: str, arguments: list[object]) -> Signal | None:
    path, interfaces = arguments
    properties = read_connection(interfaces)
    return Added(str(path), properties) if properties else None


def _removed(_: str, arguments: list[object]) -> Signal | None:
    path, interfaces = arguments
    return Removed(str(path)) if isinstance(interfaces, list) and CONNECTION in interfaces else None


def _changed(path: str, arguments: list[object]) -> Signal | None:
    interface, properties, _invalidated = arguments
    return Changed(path, read_properties(properties)) if interface == CONNECTION else None


_Reader = Callable[[str, list[object]], Signal | None]

_FROM_BUS: Final[Mapping[tuple[str, str], _Reader]] = {
    (f"{DBUS}.NameOwnerChanged", "sss"): _owner,
}
_FROM_SERVICE: Final[Mapping[tuple[str, str], _Reader]] = {
    (f"{OBJECT_MANAGER}.InterfacesAdded", "oa{sa{sv}}"): _added,
    (f"{OBJECT_MANAGER}.InterfacesRemoved", "oas"): _removed,
    (f"{PROPERTIES}.PropertiesChanged", "sa{sv}as"): _changed,
}
