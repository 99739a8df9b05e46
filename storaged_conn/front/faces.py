# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interfaces of ours: each method is what dbus/*.xml says of it, translated."""

from collections.abc import Mapping
from typing import Final

from storaged_conn.bus import wire
from storaged_conn.bus.wire import Variant
from storaged_conn.errors import AttemptError, InvalidArgumentError, NotFoundError
from storaged_conn.front.actions import Action
from storaged_conn.front.call import Call, Reply
from storaged_conn.front.callers import is_trusted
from storaged_conn.front.lifetimes import Lifetimes
from storaged_conn.front.objects import Objects
from storaged_conn.front.waits import Waits
from storaged_conn.manager import Client, Manager
from storaged_conn.names import connection_id, object_path
from storaged_conn.runner import PUBLIC
from storaged_conn.unmanaged import View

NOBODY: Final = 0xFFFFFFFF
"""The uid that no user has. Source: chown(2), (uid_t) -1."""

LONGEST_WAIT: Final = 3600.0
"""Seconds that WaitFor waits at most."""

STATES: Final = tuple(dict.fromkeys(PUBLIC.values()))

Options = Mapping[str, Variant]


def describe(view: View) -> dict[str, object]:
    """Give all properties of org.storage.Connection1."""
    return _identity(view) | _condition(view) | _substance(view)


def _identity(view: View) -> dict[str, object]:
    record, runner = view.record, view.runner
    others = runner.machine.holders - {view.cid} if runner else ()
    return {
        "ConnectionId": view.cid,
        "Uri": view.uri,
        "Scheme": view.uri.partition(":")[0],
        "Managed": record is not None,
        "SharedWith": tuple(sorted(others)),
        "Owner": record.owner if record else NOBODY,
        "Lifetime": record.lifetime.value if record else "",
    }


REASONS: Final = {"connected": "", "unresponsive": "unresponsive"}
"""Of the states that what nobody manages can be in."""


def _state_of_foreign(view: View) -> str:
    return "connected" if view.present and view.present.responsive else "unresponsive"


def _condition(view: View) -> dict[str, object]:
    runner = view.runner
    state = runner.state if runner else _state_of_foreign(view)
    error = runner.error if runner else None
    return {
        "State": state,
        "Connected": state == "connected",
        "StateReason": runner.reason if runner else REASONS[state],
        "StateSince": runner.since if runner else 0,
        "LastError": error.code if error else 0,
        "LastErrorName": error.dbus_name if error else "",
        "LastErrorMessage": _message(view, error) if error else "",
        "NextAttempt": runner.next_attempt if runner else 0,
        "Attempts": runner.machine.attempts if runner else 0,
        "Reconnects": runner.machine.reconnects if runner else 0,
    }


def _message(view: View, error: AttemptError) -> str:
    """Say what happened: to everybody, so not in detail what root found for somebody else.

    The words of a tool, or the path of a file, would tell any user what only root may look at.
    """
    if view.owner is not None and is_trusted(view.owner):
        return str(error)
    return f"{error.reason}; the journal of the host has the details"


def _substance(view: View) -> dict[str, object]:
    present = view.present
    return {
        "ConnectionInfo": present.info if present else {},
        "MountPoint": present.mountpoint if present else "",
        "Devices": present.devices if present else (),
    }


class ManagerFace:
    """org.storage.Connection.Manager1."""

    def __init__(self, manager: Manager, objects: Objects, lifetimes: Lifetimes) -> None:
        self._manager = manager
        self._objects = objects
        self._lifetimes = lifetimes

    async def Manage(self, call: Call, uri: str, cid: str, options: Options) -> Reply:
        caller = call.caller
        scopes = self._lifetimes.scopes(caller.sender)
        client = Client(caller.uid, scopes, trusted=caller.trusted)
        record = await self._manager.manage(uri, cid, wire.given(options), client)
        await self._lifetimes.follow(record)
        return (object_path(cid),)

    async def Unmanage(self, call: Call, cid: str, options: Options) -> Reply:
        _refuse_all(options)
        own = call.action is Action.UNMANAGE
        await self._manager.unmanage(cid, call.caller.uid if own else None)
        return ()

    def List(self, call: Call) -> Reply:
        return self._objects.list_body()

    async def Validate(self, call: Call, uri: str, options: Options) -> Reply:
        result = await self._manager.validate(uri, wire.given(options), call.caller.uid)
        return (wire.variant("a{sv}", result).value,)

    async def Discover(self, call: Call, uri: str, options: Options) -> Reply:
        found = await self._manager.discover(uri, wire.given(options), call.caller.uid)
        return ([wire.variant("a{sv}", one).value for one in found],)

    def GetConnection(self, call: Call, cid: str) -> Reply:
        if not self._objects.has(cid):
            raise NotFoundError(f"connection_id {cid!r} is not known; see List")
        return (object_path(cid),)


class ConnectionFace:
    """org.storage.Connection1, for all connections; the path says which."""

    def __init__(self, manager: Manager, waits: Waits) -> None:
        self._manager = manager
        self._waits = waits

    def Reconnect(self, call: Call, options: Options) -> Reply:
        _refuse_all(options)
        self._manager.reconnect(connection_id(call.path) or "")
        return ()

    async def WaitFor(self, call: Call, state: str, timeout_usec: int, options: Options) -> Reply:
        _refuse_all(options)
        if state not in STATES:
            raise InvalidArgumentError(f"state {state!r} is none of {', '.join(STATES)}")
        seconds = min(timeout_usec / 1e6 or LONGEST_WAIT, LONGEST_WAIT)
        await self._waits.wait(connection_id(call.path) or "", state, seconds, call.caller.sender)
        return (state,)


def _refuse_all(options: Options) -> None:
    for name in options:
        raise InvalidArgumentError(f"options: {name!r} is unknown; this method knows none")
