# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a call on the bus to a handler and back to a reply: checks, fairness, errors.

Each caller has a queue of its own, and the queues are served in turn: one that floods waits only
for itself. A call's body is not read before its member is known, the caller is authorized, and its
signature is the declared one.
"""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from storaged_conn.bus.connection import Bus, BusLostError
from storaged_conn.bus.wire import MAX_SENT, Field, MalformedError, Message, marshal
from storaged_conn.errors import ConnError, LimitExceededError
from storaged_conn.front.authorize import Authority
from storaged_conn.front.contract import Interface, Method
from storaged_conn.runner import Spawn

logger = logging.getLogger(__name__)

MAX_CALL: Final = 32 * 1024
"""Bytes of a call's body. A URI has at most 4 KiB, and reading this much takes at most 20 ms."""

MAX_OPEN_CALL: Final = 4 * 1024
"""Bytes of a call's body that anybody may send: a name and a few options, read within 3 ms."""

MAX_WAITING: Final = 64
"""Calls of one caller that wait for their turn. Source: half of dbus-daemon's limit of 128 replies
that a connection may wait for, so a caller meets our words before the bus's."""

MAX_RUNNING: Final = 64
"""Calls of one caller that are being answered."""

BATCH: Final = 16
"""Calls served in one turn of the loop: at 0.3 ms each, 5 ms."""

ERROR: Final = "org.freedesktop.DBus.Error."


class ProtocolError(Exception):
    """A call that does not fit any object; `name` is one of the bus's own errors."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = ERROR + name


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls what: what a handler gets before the arguments."""

    sender: str
    path: str
    uid: int | None = None


Reply = bytes | tuple[object, ...]
"""A handler gives the values, or the whole body as bytes."""

Handler = Callable[..., Reply | Awaitable[Reply]]


class Tree(Protocol):
    """The objects that there are."""

    def interfaces(self, path: str) -> Mapping[str, Interface] | None:
        """Give an object's interfaces by name, or None where there is no object."""

    def handler(self, method: Method) -> Handler:
        """Give what answers a method."""


@dataclass(slots=True)
class _Caller:
    waiting: deque[Message] = field(default_factory=deque)
    running: int = 0


class Dispatcher:
    """Takes the calls of a bus and has a tree of objects answer them."""

    def __init__(self, bus: Bus, tree: Tree, authority: Authority, spawn: Spawn) -> None:
        """Begin to take calls."""
        self._bus = bus
        self._tree = tree
        self._authority = authority
        self._spawn = spawn
        self._callers: dict[str, _Caller] = {}
        self._turns: deque[str] = deque()
        self._serving = False
        bus.on_call = self._take
        bus.on_oversize = self._refuse_size
        bus.on_room = self._serve_soon

    # whose turn it is

    def _take(self, message: Message) -> None:
        sender = message.text(Field.SENDER)
        caller = self._callers.setdefault(sender, _Caller())
        if len(caller.waiting) >= MAX_WAITING:
            text = f"{MAX_WAITING} calls of yours are waiting; wait for their replies"
            self._bus.error(message, LimitExceededError(text).dbus_name, text)
            return
        caller.waiting.append(message)
        if len(caller.waiting) == 1 and caller.running < MAX_RUNNING:
            self._turns.append(sender)
        self._serve_soon()

    def _refuse_size(self, message: Message) -> None:
        error = LimitExceededError(f"a call may have {MAX_CALL} bytes; send less")
        self._bus.error(message, error.dbus_name, str(error))

    def _serve_soon(self) -> None:
        if self._turns and not self._serving and not self._bus.congested:
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._serving = False
        for _ in range(min(BATCH, len(self._turns))):
            if self._bus.congested:
                return  # replies that nobody takes would fill our memory: see on_room
            sender = self._turns.popleft()
            caller = self._callers[sender]
            message = caller.waiting.popleft()
            caller.running += 1
            if caller.waiting and caller.running < MAX_RUNNING:
                self._turns.append(sender)
            self._answer(message)
        self._serve_soon()

    def _done(self, sender: str) -> None:
        caller = self._callers[sender]
        caller.running -= 1
        if caller.waiting and sender not in self._turns:
            self._turns.append(sender)
            self._serve_soon()
        elif not caller.running and not caller.waiting:
            del self._callers[sender]

    # one call

    def _answer(self, message: Message) -> None:
        """Answer at once what needs no waiting; start a task for the rest."""
        pending: Awaitable[Reply] | None = None
        method: Method | None = None
        try:
            method = self._find(message)
            if self._authority.is_open(method):
                result = self._invoke(method, message, None)
                if isinstance(result, (bytes, tuple)):
                    self._reply(message, method, result)
                else:
                    pending = result
            else:
                pending = self._authorized(method, message)
        except Exception as error:  # noqa: BLE001  # becomes the reply, and is logged if a defect
            self._fail(message, error)
        if pending is None or method is None:
            self._done(message.text(Field.SENDER))
        else:
            self._spawn(self._finish(method, message, pending))

    async def _finish(self, method: Method, message: Message, pending: Awaitable[Reply]) -> None:
        try:
            self._reply(message, method, await pending)
        except asyncio.CancelledError:
            self._bus.error(message, ERROR + "NoReply", "the service is stopping; call again")
            raise
        except Exception as error:  # noqa: BLE001  # becomes the reply, and is logged if a defect
            self._fail(message, error)
        finally:
            self._done(message.text(Field.SENDER))

    async def _authorized(self, method: Method, message: Message) -> Reply:
        uid = await self._authority.check(method, message.text(Field.SENDER))
        result = self._invoke(method, message, uid)
        return await result if inspect.isawaitable(result) else result

    def _invoke(
        self, method: Method, message: Message, uid: int | None
    ) -> Reply | Awaitable[Reply]:
        signature = message.text(Field.SIGNATURE)
        if signature != method.takes:
            text = f"{method.name} takes ({method.takes}), not ({signature})"
            raise ProtocolError("InvalidArgs", text)
        if uid is None and len(message.body) > MAX_OPEN_CALL:
            raise LimitExceededError(f"{method.name} takes {MAX_OPEN_CALL} bytes; send less")
        call = Call(message.text(Field.SENDER), message.text(Field.PATH), uid)
        arguments = message.arguments() if signature else []
        return self._tree.handler(method)(call, *arguments)

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

    def _reply(self, message: Message, method: Method, result: Reply) -> None:
        body = result if isinstance(result, bytes) else marshal(method.gives, result)
        if len(body) > MAX_SENT:
            raise LimitExceededError(f"the reply has {len(body)} bytes; ask object by object")
        self._bus.reply(message, method.gives, body)

    def _fail(self, message: Message, error: Exception) -> None:
        match error:
            case ConnError():
                self._bus.error(message, error.dbus_name, str(error))
            case ProtocolError():
                self._bus.error(message, error.name, str(error))
            case MalformedError():
                self._bus.error(message, ERROR + "InvalidArgs", "the arguments are malformed")
            case BusLostError():
                pass  # nobody is left to tell; the daemon is ending
            case _:
                logger.error("defect in %s", message.text(Field.MEMBER), exc_info=error)
                self._bus.error(message, ERROR + "Failed", "an internal error; see the journal")
