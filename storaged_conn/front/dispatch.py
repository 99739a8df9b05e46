# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a call on the bus to a handler and back to a reply: checks, fairness, errors.

A call's body is not read before its member is known and its signature is the declared one, and its
handler is not called before the caller is authorized.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from storaged_conn.bus.connection import Bus, BusLostError
from storaged_conn.bus.wire import MAX_SENT, Field, Flag, MalformedError, Message, marshal
from storaged_conn.errors import ConnError, LimitExceededError
from storaged_conn.front.actions import Action
from storaged_conn.front.authorize import Authority
from storaged_conn.front.call import ERROR, Call, Handler, ProtocolError, Reply
from storaged_conn.front.callers import Caller, Callers
from storaged_conn.front.contract import Interface, Method
from storaged_conn.front.flight import Flight
from storaged_conn.front.refusals import Refusals
from storaged_conn.front.turns import MAX_IN_ALL, MAX_WAITING, Turns
from storaged_conn.runner import Spawn

logger = logging.getLogger(__name__)

MAX_CALL: Final = 32 * 1024
"""Bytes of a call's body. A URI has at most 4 KiB, and reading this much takes at most 20 ms."""

MAX_OPEN_CALL: Final = 4 * 1024
"""Bytes of a call's body that anybody may send: a name and a few options, read within 3 ms."""

BATCH: Final = 16
"""Calls served in one turn of the loop: at 0.3 ms each, 5 ms."""

BATCH_BYTES: Final = 8 * 1024
"""Bytes of calls after which a batch ends: read within 5 ms."""


class Tree(Protocol):
    """The objects that there are."""

    def interfaces(self, path: str) -> Mapping[str, Interface] | None:
        """Give an object's interfaces by name, or None where there is no object."""

    def handler(self, method: Method) -> Handler:
        """Give what answers a method."""


class Dispatcher:
    """Takes the calls of a bus and has a tree of objects answer them."""

    def __init__(
        self, bus: Bus, tree: Tree, callers: Callers, authority: Authority, spawn: Spawn
    ) -> None:
        """Begin to take calls."""
        self._bus = bus
        self._tree = tree
        self._callers = callers
        self._authority = authority
        self._spawn = spawn
        self._flight = Flight(bus, spawn, self._resume)
        self._turns = Turns(self._flight.has_room)
        self._refusals = Refusals(bus, callers, self._flight)
        self._strangers: dict[str, list[Message]] = {}
        self._serving = False
        bus.on_call = self._take
        bus.on_oversize = self._refuse_size
        bus.on_room = self._serve_soon

    # whose turn it is

    def _take(self, message: Message) -> None:
        sender = message.text(Field.SENDER)
        caller = self._callers.known(sender)
        if sender in self._strangers:
            self._keep(self._strangers[sender], message)
        elif caller:
            self._line_up(caller, message)
        else:
            self._strangers[sender] = [message]
            self._spawn(self._meet(sender))

    def _keep(self, calls: list[Message], message: Message) -> None:
        """Keep one more call of a stranger, whose first one is always kept."""
        if len(calls) < MAX_WAITING and sum(map(len, self._strangers.values())) < MAX_IN_ALL:
            calls.append(message)
        else:
            text = f"{MAX_WAITING} calls of yours are waiting; wait for their replies"
            self._refusals.add(message, text)
            self._serve_soon()

    async def _meet(self, sender: str) -> None:
        """Learn who it is that calls for the first time."""
        try:
            caller = await self._callers.meet(sender)
        finally:
            messages = self._strangers.pop(sender)
        if caller:  # else it has left
            for message in messages:
                self._line_up(caller, message)

    def _line_up(self, caller: Caller, message: Message) -> None:
        try:
            self._turns.add(caller, message)
        except LimitExceededError as error:
            self._refusals.add(message, str(error))
        self._serve_soon()

    def _refuse_size(self, message: Message) -> None:
        error = LimitExceededError(f"a call may have {MAX_CALL} bytes; send less")
        self._bus.error(message, error.dbus_name, str(error))

    def _resume(self) -> None:
        self._turns.resume()
        self._serve_soon()

    def _serve_soon(self) -> None:
        if not self._serving and self._can_serve():
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _can_serve(self) -> bool:
        return bool(self._turns or self._refusals) and not self._bus.behind  # see on_room

    def _serve(self) -> None:
        self._serving = False
        read = 0
        for _ in range(BATCH):
            if read > BATCH_BYTES or not self._can_serve():
                break
            if turn := self._turns.take():
                caller, message = turn
                read += len(message.body)
                self._answer(caller, message)
            if self._refusals:
                self._refusals.tell()
        self._serve_soon()

    def _done(self, caller: Caller) -> None:
        self._turns.done(caller)
        self._serve_soon()

    # one call

    def _answer(self, caller: Caller, message: Message) -> None:
        """Answer at once what needs no waiting; start a task for the rest."""
        pending: Awaitable[Reply] | None = None
        method: Method | None = None
        try:
            method = self._find(message)
            result = self._begin(method, caller, message)
            if isinstance(result, (bytes, tuple)):
                self._reply(caller, message, method, result)
            else:
                pending = result
        except Exception as error:  # noqa: BLE001  # becomes the reply, and is logged if a defect
            self._fail(caller, message, error)
        if pending is None or method is None:
            self._done(caller)
        else:
            self._spawn(self._finish(method, caller, message, pending))

    async def _finish(
        self, method: Method, caller: Caller, message: Message, pending: Awaitable[Reply]
    ) -> None:
        try:
            self._reply(caller, message, method, await pending)
        except asyncio.CancelledError:
            self._bus.error(message, ERROR + "NoReply", "the service is stopping; call again")
            raise
        except Exception as error:  # noqa: BLE001  # becomes the reply, and is logged if a defect
            self._fail(caller, message, error)
        finally:
            self._done(caller)

    def _begin(self, method: Method, caller: Caller, message: Message) -> Reply | Awaitable[Reply]:
        needed = self._authority.action(method)
        must_ask = self._authority.must_ask(needed, caller)
        arguments = _arguments(method, message, MAX_CALL if needed else MAX_OPEN_CALL)
        interactive = bool(message.flags & Flag.ALLOW_INTERACTIVE_AUTHORIZATION)
        call = Call(caller, message.text(Field.PATH), interactive)
        if needed is None or not must_ask:
            return self._tree.handler(method)(call, *arguments)
        return self._ask_first(method, needed, call, arguments)

    async def _ask_first(
        self, method: Method, needed: Action, call: Call, arguments: list[Any]
    ) -> Reply:
        allowed = await self._authority.check(needed, call, arguments)
        result = self._tree.handler(method)(replace(call, action=allowed), *arguments)
        return await result if inspect.isawaitable(result) else result

    def _find(self, message: Message) -> Method:
        path = message.text(Field.PATH)
        interfaces = self._tree.interfaces(path)
        if interfaces is None:
            raise ProtocolError("UnknownObject", f"there is no object {path}")
        name, member = message.text(Field.INTERFACE), message.text(Field.MEMBER)
        if name and name not in interfaces:
            raise ProtocolError("UnknownInterface", f"{path} has no interface {name}")
        # a call may leave the interface out; then the member alone decides
        for interface in [interfaces[name]] if name else interfaces.values():
            if method := interface.methods.get(member):
                return method
        raise ProtocolError("UnknownMethod", f"{path} has no method {member}")

    # one reply

    def _reply(self, caller: Caller, message: Message, method: Method, result: Reply) -> None:
        body = result if isinstance(result, bytes) else marshal(method.gives, result)
        if len(body) > MAX_SENT:
            raise LimitExceededError(f"the reply has {len(body)} bytes; ask object by object")
        self._count(caller, message, len(body))
        self._bus.reply(message, method.gives, body)

    def _fail(self, caller: Caller, message: Message, error: Exception) -> None:
        match error:
            case ConnError():
                name, text = error.dbus_name, str(error)
            case ProtocolError():
                name, text = error.name, str(error)
            case MalformedError():
                name, text = ERROR + "InvalidArgs", "the arguments are malformed"
            case BusLostError():
                return  # nobody is left to tell; the daemon is ending
            case _:
                logger.error("defect in %s", message.text(Field.MEMBER), exc_info=error)
                name, text = ERROR + "Failed", "an internal error; see the journal"
        self._count(caller, message, len(text))
        self._bus.error(message, name, text)

    def _count(self, caller: Caller, message: Message, size: int) -> None:
        if not message.flags & Flag.NO_REPLY_EXPECTED:
            self._flight.sent(caller, size)


def _arguments(method: Method, message: Message, limit: int) -> list[Any]:
    signature = message.text(Field.SIGNATURE)
    if signature != method.takes:
        text = f"{method.name} takes ({method.takes}), not ({signature})"
        raise ProtocolError("InvalidArgs", text)
    if len(message.body) > limit:
        raise LimitExceededError(f"{method.name} takes {limit} bytes; send less")
    return message.arguments() if signature else []
