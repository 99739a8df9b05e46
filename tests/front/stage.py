# SPDX-License-Identifier: LGPL-2.1-or-later
"""The front without a bus: what is sent is kept, and calls are made by hand."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

import pytest

from storaged_conn.bus.connection import QUEUE_HIGH, Bus, CallError
from storaged_conn.bus.wire import Field, Kind, Message, marshal
from storaged_conn.front import authorize
from storaged_conn.front.actions import Action
from storaged_conn.front.authorize import Authority
from storaged_conn.front.call import Call, Handler, Reply
from storaged_conn.front.callers import Caller, Callers
from storaged_conn.front.contract import Interface, Method
from storaged_conn.front.dispatch import Dispatcher
from storaged_conn.front.polkit import Polkit, Verdict
from tests.live import DEADLINE

FACE: Final = "test.Face"
OTHER: Final = "test.Other"
PATH: Final = "/test"

METHODS: Final = (
    Method(FACE, "Read", "s", "s"),
    Method(FACE, "Write", "s", "s"),
    Method(FACE, "Wait", "", ""),
    Method(FACE, "Hidden", "", ""),
    Method(OTHER, "Elsewhere", "", "s"),
)

ACTIONS: Final = {
    (FACE, "Read"): None,
    (FACE, "Wait"): None,
    (FACE, "Write"): Action.CONTROL,
    (OTHER, "Elsewhere"): None,
}

ROOT: Final = ":1.1"
USER: Final = ":2.2"
GONE: Final = ":2.3"
NOBODY: Final = 65534

serials = count(1)


class FakeBus(Bus):
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.more = asyncio.Event()
        self.on_room = lambda: None
        self._queue = deque()
        self._queued = 0
        self._listeners = []

    async def call(self, *_: object, **__: object) -> list[object]:
        raise CallError("org.freedesktop.DBus.Error.UnknownMethod", "no statistics")

    def send(self, message: Message) -> int:
        self.sent.append(message)
        self.more.set()
        return len(self.sent)

    def crowd(self, *, crowded: bool) -> None:
        """Have much that waits to be sent, or have sent it."""
        self._queue = deque([memoryview(b"much")] if crowded else [])
        self._queued = QUEUE_HIGH + 1 if crowded else 0
        if not crowded:
            self.on_room()

    def answers(self) -> list[int]:
        """Give the serials of the calls that were answered, in that order."""
        return [message.reply_to for message in self.sent]

    async def answer(self, call: Message) -> Message:
        """Wait for the answer to a call."""
        await self.until(lambda: call.serial in self.answers())
        return self.sent[self.answers().index(call.serial)]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that something sent may bring about."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self.more.clear()
                await self.more.wait()


class FakeCallers(Callers):
    """Knows everybody to be root but a user, and those whom it is yet to meet."""

    def __init__(self) -> None:
        self.strangers = {GONE}

    def known(self, sender: str) -> Caller | None:
        uid = NOBODY if sender == USER else 0
        return None if sender in self.strangers else Caller(sender, uid)

    async def meet(self, sender: str) -> Caller | None:
        await asyncio.sleep(0)
        if sender != GONE:
            self.strangers.remove(sender)
        return self.known(sender)


class FakePolkit(Polkit):
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.verdict = Verdict.NO
        self.asked: list[tuple[Caller, Action, dict[str, str], bool]] = []

    def make_room(self, uid: int) -> None:
        pass

    async def check(
        self, caller: Caller, action: Action, details: Mapping[str, str], *, interactive: bool
    ) -> Verdict:
        self.asked.append((caller, action, dict(details), interactive))
        await asyncio.sleep(0)
        return self.verdict


class FakeTree:
    """One object with two interfaces."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self.handlers = handlers
        self.declared = {
            name: Interface(name, "", {one.name: one for one in METHODS if one.interface == name})
            for name in (FACE, OTHER)
        }

    def interfaces(self, path: str) -> Mapping[str, Interface] | None:
        return self.declared if path == PATH else None

    def handler(self, method: Method) -> Handler:
        return self.handlers[method.name]


def a_call(member: str, text: str | None = None, sender: str = ":1.1", flags: int = 0) -> Message:
    """Make a call as the bus would bring it."""
    fields: dict[int, object] = {
        Field.PATH: PATH,
        Field.INTERFACE: FACE,
        Field.MEMBER: member,
        Field.SENDER: sender,
    }
    body = b""
    if text is not None:
        fields[Field.SIGNATURE] = "s"
        body = marshal("s", [text])
    return Message(Kind.CALL, flags, next(serials), fields, body)


class Stage:
    """A dispatcher with a bus and a tree in hand."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.calls: list[tuple[Call, str]] = []
        self.free = asyncio.Event()
        self.called = asyncio.Event()
        self.handlers: dict[str, Handler] = {
            "Read": self.echo,
            "Write": self.echo_later,
            "Wait": self.wait,
            "Hidden": self.wait,
            "Elsewhere": lambda call: ("elsewhere",),
        }
        self.bus = FakeBus()
        self.callers = FakeCallers()
        self.polkit = FakePolkit()
        authority = Authority(self.polkit, lambda cid: None)
        tree = FakeTree(self.handlers)
        self.dispatcher = Dispatcher(self.bus, tree, self.callers, authority, tasks.create_task)

    def echo(self, call: Call, text: str) -> Reply:
        self._note(call, text)
        return (text,)

    async def echo_later(self, call: Call, text: str) -> Reply:
        await asyncio.sleep(0)
        return self.echo(call, text)

    async def wait(self, call: Call) -> Reply:
        self._note(call, "")
        await self.free.wait()
        return ()

    def _note(self, call: Call, text: str) -> None:
        self.calls.append((call, text))
        self.called.set()

    async def until_called(self, times: int) -> None:
        """Wait until handlers were called so many times."""
        async with asyncio.timeout(DEADLINE):
            while len(self.calls) < times:
                self.called.clear()
                await self.called.wait()

    async def ask(self, message: Message) -> Message:
        """Have one call answered."""
        self.bus.on_call(message)
        return await self.bus.answer(message)


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authorize, "ACTIONS", ACTIONS)
        async with asyncio.TaskGroup() as tasks:
            stage = Stage(tasks)
            yield stage
            stage.free.set()
