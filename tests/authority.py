# SPDX-License-Identifier: LGPL-2.1-or-later
"""A polkitd for tests, on a private bus: it does as it is told, and remembers what it was asked."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus
from storaged_conn.bus.wire import Field, Message
from storaged_conn.front.polkit import NAME
from tests.live import DEADLINE

ANSWERS: Final[dict[str, tuple[bool, bool, dict[str, str]]]] = {
    "allows": (True, False, {}),
    "denies": (False, False, {}),
    "challenges": (False, True, {"polkit.retains_authorization_after_challenge": "1"}),
    "is dismissed": (False, False, {"polkit.dismissed": "true"}),
}
"""Source: polkit, docs/polkit, AuthorizationResult."""


class Question(NamedTuple):
    """What was asked, as CheckAuthorization has it, without variants."""

    kind: str
    subject: dict[str, object]
    action: str
    details: dict[str, str]
    flags: int
    cancellation: str


class PolkitD:
    """What it does is one of ANSWERS, `hangs`, `dies`, or a function of the question's subject."""

    def __init__(self, bus: Bus) -> None:
        self.does: str | Callable[[str], str] = "denies"
        self.asked: list[Question] = []
        self.cancelled: list[str] = []
        self._bus = bus
        self._news = asyncio.Event()
        bus.on_call = self._answer

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when something that is asked has brought a condition about."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def _answer(self, call: Message) -> None:
        arguments: list[Any] = [wire.plain(one) for one in call.arguments()]
        if call.text(Field.MEMBER) == "CancelCheckAuthorization":
            self.cancelled.append(arguments[0])
        else:
            question = Question(*arguments[0], *arguments[1:])
            self.asked.append(question)
            self._decide(call, str(question.subject["name"]))
        self._news.set()

    def _decide(self, call: Message, sender: str) -> None:
        does = self.does if isinstance(self.does, str) else self.does(sender)
        if does == "dies":
            self._bus.close()
        elif does != "hangs":
            self._bus.reply(call, "(bba{ss})", wire.marshal("(bba{ss})", [list(ANSWERS[does])]))


@asynccontextmanager
async def authority(address: str) -> AsyncIterator[PolkitD]:
    """Run it on a bus."""
    bus = await Bus.open(address, max_message=2**20)
    try:
        assert await bus.ask("RequestName", "su", NAME, 0) == [1]
        yield PolkitD(bus)
    finally:
        bus.close()
