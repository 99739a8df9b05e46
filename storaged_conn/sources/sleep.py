# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells when the host goes to sleep and when it is back, from logind's PrepareForSleep.

Attempts would fail while devices go away, and count; after the sleep every sentinel may be dead
without knowing it. Source: org.freedesktop.login1(5), PrepareForSleep.
"""

from collections.abc import Callable, Coroutine
from typing import Final

from storaged_conn.bus.connection import Bus, BusLostError, CallError
from storaged_conn.bus.wire import Field, Message
from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look, Source

LOGIND: Final = "org.freedesktop.login1"
RULE: Final = f"type='signal',sender='{LOGIND}',member='PrepareForSleep'"

Spawn = Callable[[Coroutine[object, object, None]], object]


class SleepSource(Source):
    """Pauses before a sleep, and resumes and looks at everything after it.

    Attributes:
        pause: called before.
        resume: called after, and then `resync`.
    """

    def __init__(self, bus: Bus, spawn: Spawn) -> None:
        """Nothing is watched before `start`."""
        self.pause: Callable[[], None] = lambda: None
        self.resume: Callable[[], None] = lambda: None
        self._bus = bus
        self._spawn = spawn
        self._resync: Callable[[], None] | None = None

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        """See Source."""
        self._resync = resync
        self._bus.listen(self._hear)
        self._bus.tell("AddMatch", "s", RULE)

    def close(self) -> None:
        """See Source."""
        self._resync = None

    def watch(self, topic: Topic) -> None:
        """See Source; there are no topics here."""

    def unwatch(self, topic: Topic) -> None:
        """See Source."""

    def _hear(self, signal: Message) -> None:
        if signal.text(Field.MEMBER) == "PrepareForSleep" and signal.text(Field.SIGNATURE) == "b":
            self._spawn(self._obey(signal))

    async def _obey(self, signal: Message) -> None:
        """Act if it is logind who says so: a match rule does not keep others from writing to us."""
        try:
            (owner,) = await self._bus.ask("GetNameOwner", "s", LOGIND)
        except (CallError, BusLostError):
            return
        if owner != signal.text(Field.SENDER) or self._resync is None:
            return
        (sleeping,) = signal.arguments()
        if sleeping:
            self.pause()
        else:
            self.resume()
            self._resync()
