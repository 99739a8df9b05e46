# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of the service, for tests: it calls, and remembers every signal that it heard.

async with calling(address) as caller:
    await caller.manage("simulated:x", "my cid", latency_ms=20)
    await caller.until("my cid", State="connected")
"""

import asyncio
import sys
from collections import ChainMap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus, CallError
from storaged_conn.bus.wire import Field, Message
from storaged_conn.core.model import Record
from storaged_conn.errors import ERROR_PREFIX
from storaged_conn.names import (
    CONNECTION,
    DBUS,
    DBUS_PATH,
    MANAGER,
    OBJECT_MANAGER,
    PROPERTIES,
    ROOT,
    SERVICE,
    object_path,
)
from tests.live import DEADLINE, Daemon, private_bus
from tests.stores import records

MAX_MESSAGE: Final = 2**27
"""Bytes. Source: D-Bus specification, the largest message."""

CHANGED: Final = "PropertiesChanged"

UNTOLD: Final = {"Attempts": 0, "Reconnects": 0}
"""What no signal is sent for. Source: dbus/org.storage.Connection1.xml."""


class Signal(NamedTuple):
    """One signal of the service, without variants."""

    path: str
    interface: str
    member: str
    body: Any


@dataclass
class Refusal:
    """An error reply."""

    name: str = ""
    text: str = ""


class Caller:
    """One connection to the bus, talking to the service.

    Attributes:
        heard: the signals, in their order.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.heard: list[Signal] = []
        self._news = asyncio.Event()
        bus.listen(self._hear)

    # calls

    async def call(
        self,
        member: str,
        signature: str = "",
        *body: object,
        path: str = ROOT,
        interface: str = MANAGER,
    ) -> Any:
        """Call a method of the service, by default of the manager; the result has no variants."""
        where = (SERVICE, path, interface, member)
        return wire.plain(await self.bus.call(where, signature, body, timeout=DEADLINE))

    async def manage(self, uri: str, cid: str, **options: object) -> str:
        """Manage; an option `read_only=True` is sent as `read-only`."""
        (path,) = await self.call("Manage", "ssa{sv}", uri, cid, given(options))
        assert path == object_path(cid)
        return str(path)

    async def unmanage(self, cid: str) -> None:
        """Unmanage."""
        await self.call("Unmanage", "sa{sv}", cid, {})

    async def reconnect(self, cid: str) -> None:
        """Reconnect."""
        path = object_path(cid)
        await self.call("Reconnect", "a{sv}", {}, path=path, interface=CONNECTION)

    async def wait_for(self, cid: str, state: str, usec: int = 0) -> str:
        """WaitFor."""
        where = {"path": object_path(cid), "interface": CONNECTION}
        (reached,) = await self.call("WaitFor", "sta{sv}", state, usec, {}, **where)
        return str(reached)

    async def listed(self) -> dict[str, dict[str, Any]]:
        """List."""
        (found,) = await self.call("List")
        return dict(found)

    async def objects(self) -> list[dict[str, Any]]:
        """Give the properties of all connections."""
        (found,) = await self.call("GetManagedObjects", interface=OBJECT_MANAGER)
        return [interfaces[CONNECTION] for interfaces in found.values()]

    async def managed(self) -> dict[str, dict[str, Any]]:
        """Give the properties of all that is managed, by connection id."""
        return {one["ConnectionId"]: one for one in await self.objects() if one["Managed"]}

    async def properties(self, cid: str) -> dict[str, Any]:
        """GetAll of a connection."""
        path = object_path(cid)
        (found,) = await self.call("GetAll", "s", CONNECTION, path=path, interface=PROPERTIES)
        return dict(found)

    # signals

    async def until(self, cid: str, **wanted: object) -> dict[str, Any]:
        """Return a connection's properties when they are as wanted, looking after every signal."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._news.clear()
                found = await self.properties(cid)
                if {name: found[name] for name in wanted} == wanted:
                    return found
                await self._news.wait()

    async def hears(self, member: str, path: str, when: Callable[[Any], object] = bool) -> Signal:
        """Return a signal, heard already or to come: its member, its path, and what its body is."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._news.clear()
                for one in self.heard:
                    if (one.member, one.path) == (member, path) and when(one.body):
                        return one
                await self._news.wait()

    async def hears_added(self, cid: str) -> Signal:
        """Return when a connection was added; ROOT is where that is said."""
        return await self.hears("InterfacesAdded", ROOT, lambda body: body[0] == object_path(cid))

    async def hears_removed(self, cid: str) -> Signal:
        """Return when a connection was removed."""
        return await self.hears("InterfacesRemoved", ROOT, lambda body: body[0] == object_path(cid))

    async def unmanaged(self, uri: str, **wanted: object) -> str:
        """Return the temporary id of an unmanaged connection when it is there, and as wanted."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._news.clear()
                for one in await self.objects():
                    if {"Uri": uri, "Managed": False, **wanted}.items() <= one.items():
                        return str(one["ConnectionId"])
                await self._news.wait()

    async def gone(self, uri: str) -> None:
        """Return when there is no connection of this URI, managed or not."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._news.clear()
                if uri not in [one["Uri"] for one in await self.objects()]:
                    return
                await self._news.wait()

    async def manages(self, *cids: str) -> None:
        """Return when these and no others are managed."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._news.clear()
                if set(await self.managed()) == set(cids):
                    return
                await self._news.wait()

    async def match_rules(self) -> int:
        """Count the service's match rules at the bus. Source: dbus-daemon's Debug.Stats."""
        where = (DBUS, DBUS_PATH, f"{DBUS}.Debug.Stats", "GetConnectionStats")
        (stats,) = await self.bus.call(where, "s", (SERVICE,), timeout=DEADLINE)
        return int(stats["MatchRules"].value)

    def changes(self, cid: str) -> list[dict[str, Any]]:
        """Give what PropertiesChanged has said of a connection."""
        path = object_path(cid)
        return [one.body[1] for one in self.heard if one[:3] == (path, PROPERTIES, CHANGED)]

    async def hears_change(self, cid: str, **wanted: object) -> None:
        """Return when PropertiesChanged has said this of a connection."""
        path = object_path(cid)
        await self.hears(CHANGED, path, lambda body: wanted.items() <= body[1].items())

    async def told(self, cid: str) -> None:
        """Return when signals alone have told all that a connection is now."""
        path = object_path(cid)
        async with asyncio.timeout(DEADLINE):
            while True:
                self._news.clear()
                found = await self.properties(cid)
                added = [one.body for one in self.heard if one.member == "InterfacesAdded"]
                known = [body[1][CONNECTION] for body in added if body[0] == path][-1:]
                told = dict(ChainMap(*reversed([*known, *self.changes(cid)])))
                if {**found, **UNTOLD} == {**told, **UNTOLD}:
                    return
                await self._news.wait()

    def _hear(self, message: Message) -> None:
        path, interface = message.text(Field.PATH), message.text(Field.INTERFACE)
        if path.startswith(ROOT):
            body = wire.plain(message.arguments())
            self.heard.append(Signal(path, interface, message.text(Field.MEMBER), body))
            self._news.set()


def given(options: dict[str, object]) -> dict[str, object]:
    """Turn keyword arguments into options; bytes are secrets."""
    named = {name.replace("_", "-"): value for name, value in options.items()}
    secrets = {name: one for name, one in named.items() if isinstance(one, bytes)}
    plain = wire.variant("a{sv}", {name: named[name] for name in named.keys() - secrets.keys()})
    return {**plain.value, **{name: wire.Variant("ay", one) for name, one in secrets.items()}}


@asynccontextmanager
async def calling(address: str) -> AsyncIterator[Caller]:
    """Connect a client that hears all signals of the service."""
    bus = await Bus.open(address, max_message=MAX_MESSAGE)
    try:
        caller = Caller(bus)
        await bus.ask("AddMatch", "s", f"type='signal',sender='{SERVICE}'")
        yield caller
    finally:
        bus.close()


@contextmanager
def refused(name: str) -> Iterator[Refusal]:
    """Expect an error of the service; its text can be looked at afterwards."""
    refusal = Refusal()
    with pytest.raises(CallError) as caught:
        yield refusal
    refusal.name, refusal.text = caught.value.name, str(caught.value)
    assert refusal.name == (name if "." in name else ERROR_PREFIX + name), refusal.text


class Service(NamedTuple):
    """The real service, alone on a bus, with a client that has heard all of it.

    Attributes:
        directory: what the test may use; the service's own directories are in it.
    """

    directory: Path
    address: str
    daemon: Daemon
    caller: Caller


@asynccontextmanager
async def serving(directory: Path, *args: str) -> AsyncIterator[Service]:
    """Run the service, with simulated connections and mount points anywhere in a directory."""
    args = ("--enable-simulated", "--mount-root", str(directory), *args)
    with private_bus() as address:
        async with (
            calling(address) as caller,
            Daemon(address, directory / "state", directory / "run", *args) as daemon,
        ):
            try:
                yield Service(directory, address, daemon, caller)
            finally:
                sys.stderr.write(daemon.log)  # pytest shows it if the test has failed


def stored(service: Service) -> dict[str, Record]:
    """Read the records of a service that does not run."""
    return {one.cid: one for one in records(service.directory / "state" / "connections.db")}
