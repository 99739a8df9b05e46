# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service's methods, as a program calls them, and its errors, as a person reads them."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from storaged_conn.bus.connection import Bus, BusLostError, CallError
from storaged_conn.bus.wire import Flag, MalformedError, plain, variant
from storaged_conn.names import (
    CONNECTION,
    MANAGER,
    OBJECT_MANAGER,
    PROPERTIES,
    ROOT,
    SERVICE,
)

Properties = dict[str, object]
"""A connection's properties, without their variants."""

Given = Mapping[str, tuple[str, object]]
"""Options: name to D-Bus signature and value."""

MAX_REPLY: Final = 128 * 1024 * 1024
"""Bytes. Source: D-Bus specification, the longest message; the service itself sends less."""

TIMEOUT: Final = 60.0
"""Seconds for one call: an operation of the service, or a person who is asked for a password.
Source: firewalld has 60 s since 25 s were too short for polkit's question."""

SLACK: Final = 10.0
"""Seconds that the service may be late with saying that time is up."""

MICROSECONDS: Final = 1_000_000

UNIT: Final = "storaged-conn.service"

_BUS_ERROR: Final = "org.freedesktop.DBus.Error."
_NOT_RUNNING: Final = (
    f"{_BUS_ERROR}ServiceUnknown",
    f"{_BUS_ERROR}NameHasNoOwner",
    f"{_BUS_ERROR}TimedOut",  # the bus's own: the service was started, and did not come
    f"{_BUS_ERROR}Spawn.",
    "org.freedesktop.systemd1.",
)
_HINTS: Final = {
    f"{_BUS_ERROR}NoReply": f"; see 'systemctl status {UNIT}'",
    f"{_BUS_ERROR}AccessDenied": "; the bus does not let this user do that, try as root",
    f"{_BUS_ERROR}UnknownMethod": "; the service is of another version than this program",
    f"{_BUS_ERROR}UnknownInterface": "; the service is of another version than this program",
    f"{_BUS_ERROR}UnknownObject": "; the connection has gone meanwhile",
}


class Failure(Exception):
    """A command that could not be done: the text says what happened and what to do.

    Attributes:
        name: the D-Bus error, for programs.
        status: what to exit with.
    """

    def __init__(self, text: str, name: str = f"{_BUS_ERROR}Failed", status: int = 1) -> None:
        super().__init__(text)
        self.name = name
        self.status = status


@asynccontextmanager
async def open_client(address: str) -> AsyncIterator["Client"]:
    """Connect to the bus, and turn what goes wrong into `Failure`."""
    try:
        bus = await Bus.open(address, max_message=MAX_REPLY)
    except BusLostError as error:
        text = f"{error}; is there a bus? --bus names another one"
        raise Failure(text, f"{_BUS_ERROR}NoServer") from None
    try:
        yield Client(bus)
    except CallError as error:
        raise explain(error) from None
    except BusLostError as error:
        raise Failure(f"{error}; try again", f"{_BUS_ERROR}Disconnected") from None
    except MalformedError as error:
        raise Failure(f"the service sent nonsense: {error}") from None
    finally:
        bus.close()


def explain(error: CallError) -> Failure:
    """Say what to do about an error reply; the service's own errors say it themselves."""
    if error.name.startswith(_NOT_RUNNING):
        text = f"the service is not running, and could not be started: {error}; try"
        return Failure(f"{text} 'systemctl start {UNIT}', or name its bus by --bus", error.name)
    return Failure(f"{error}{_HINTS.get(error.name, '')}", error.name)


class Client:
    """The service, over one connection to a bus."""

    def __init__(self, bus: Bus) -> None:
        """Talk over this bus."""
        self.bus = bus

    async def manage(self, uri: str, cid: str, options: Given) -> str:
        """Have storage kept connected; gives the object's path."""
        body = [uri, cid, _variants(options)]
        return _text(await self._call(ROOT, MANAGER, "Manage", "ssa{sv}", body))

    async def unmanage(self, cid: str) -> None:
        """Have a connection forgotten."""
        await self._call(ROOT, MANAGER, "Unmanage", "sa{sv}", [cid, {}])

    async def validate(self, uri: str, options: Given) -> Properties:
        """Ask whether storage would connect."""
        body = [uri, _variants(options)]
        return read_properties(await self._call(ROOT, MANAGER, "Validate", "sa{sv}", body))

    async def discover(self, uri: str, options: Given) -> list[Properties]:
        """Ask what a server offers."""
        found = await self._call(ROOT, MANAGER, "Discover", "sa{sv}", [uri, _variants(options)])
        return [read_properties(one) for one in found] if isinstance(found, list) else []

    async def reconnect(self, path: str) -> None:
        """Have one connection tried at once."""
        await self._call(path, CONNECTION, "Reconnect", "a{sv}", [{}])

    async def wait_for(self, path: str, state: str, seconds: float) -> str:
        """Wait until a connection is in a state."""
        body = [state, max(1, round(seconds * MICROSECONDS)), {}]
        where = SERVICE, path, CONNECTION, "WaitFor"
        reply = await self.bus.call(where, "sta{sv}", body, timeout=seconds + SLACK)
        return _text(_first(reply))

    async def path(self, cid: str) -> str:
        """Find the object of a connection, managed or not."""
        return _text(await self._call(ROOT, MANAGER, "GetConnection", "s", [cid]))

    async def properties(self, path: str) -> Properties:
        """Read one connection."""
        return read_properties(await self._call(path, PROPERTIES, "GetAll", "s", [CONNECTION]))

    async def objects(self, service: str = SERVICE) -> dict[str, Properties]:
        """Read all connections, by their paths.

        Args:
            service: the name to ask; a unique one is never started by the bus.
        """
        where = service, ROOT, OBJECT_MANAGER, "GetManagedObjects"
        reply = read_properties(plain(_first(await self.bus.call(where, timeout=TIMEOUT))))
        found = {path: read_connection(interfaces) for path, interfaces in reply.items()}
        return {path: one for path, one in found.items() if one}

    async def known_options(self, scheme: str) -> dict[str, str]:
        """Ask which options a scheme has, and their D-Bus types; none for an unknown scheme."""
        reply = await self._call(ROOT, PROPERTIES, "Get", "ss", [MANAGER, "Options"])
        schemes = read_properties(reply)
        family = f"{scheme.partition('+')[0]}+FSTYPE"  # see the property in the XML
        known = read_properties(schemes.get(scheme, schemes.get(family)))
        return {name: str(signature) for name, signature in known.items()}

    async def start(self) -> bool:
        """Have the bus start the service; says whether it runs now."""
        try:
            await self.bus.ask("StartServiceByName", "su", SERVICE, 0)
        except CallError:
            return False
        return True

    async def owner(self) -> str:
        """Give the unique name behind the service's, empty where it does not run."""
        try:
            return _text(_first(await self.bus.ask("GetNameOwner", "s", SERVICE)))
        except CallError:
            return ""

    async def match(self, rules: Iterable[str]) -> None:
        """Have signals delivered. Source: D-Bus specification, Match Rules."""
        for rule in rules:
            await self.bus.ask("AddMatch", "s", f"type='signal',{rule}")

    async def _call(
        self, path: str, interface: str, member: str, signature: str, body: Sequence[object]
    ) -> object:
        where = SERVICE, path, interface, member
        asking = Flag.ALLOW_INTERACTIVE_AUTHORIZATION  # a person is there to answer polkit
        reply = await self.bus.call(where, signature, body, timeout=TIMEOUT, flags=asking)
        return plain(_first(reply))


def read_properties(value: object) -> Properties:
    """Make a dictionary of what should be one; an empty one of anything else."""
    return {str(key): one for key, one in value.items()} if isinstance(value, dict) else {}


def read_connection(interfaces: object) -> Properties:
    """Find a connection's properties among an object's interfaces; empty where it is none."""
    return read_properties(read_properties(interfaces).get(CONNECTION))


def _variants(options: Given) -> dict[str, object]:
    return {name: variant(signature, value) for name, (signature, value) in options.items()}


def _first(values: list[object]) -> object:
    return values[0] if values else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
