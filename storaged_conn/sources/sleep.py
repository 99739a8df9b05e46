# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells when the host goes to sleep and when it is back, from logind's PrepareForSleep.

Attempts would fail while devices go away, and count; after the sleep every sentinel may be dead
without knowing it. Source: org.freedesktop.login1(5), PrepareForSleep.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Final

from storaged_conn.bus.connection import Bus, BusLostError, CallError
from storaged_conn.bus.wire import Field, Message
from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look, Source

LOGIND: Final = "org.freedesktop.login1"
RULE: Final = f"type='signal',sender='{LOGIND}',member='PrepareForSleep'"

LONGEST_PAUSE: Final = 60.0
"""Seconds awake after which a sleep is over though nobody says so, as when logind was restarted
meanwhile: it waits 5 s before the sleep (logind.conf(5), InhibitDelayMaxSec=), in which the event
loop's clock stands still (clock_gettime(2), CLOCK_MONOTONIC)."""

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
        self._timer: asyncio.TimerHandle | None = None

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        """See Source."""
        self._resync = resync
        self._bus.listen(self._hear)
        self._bus.tell("AddMatch", "s", RULE)

    def close(self) -> None:
        """See Source."""
        self._resync = None
        self._stop_timer()

    def watch(self, topic: Topic) -> None:
        """See Source; there are no topics here."""

    def unwatch(self, topic: Topic) -> None:
        """See Source."""

    def _hear(self, signal: Message) -> None:
        said = (signal.text(Field.MEMBER), signal.text(Field.SIGNATURE))
        # A match rule does not keep others from writing to us, and logind writes to all.
        if said == ("PrepareForSleep", "b") and not signal.text(Field.DESTINATION):
            self._spawn(self._obey(signal))

    async def _obey(self, signal: Message) -> None:
        """Act if it is logind who says so."""
        try:
            (owner,) = await self._bus.ask("GetNameOwner", "s", LOGIND)
        except (CallError, BusLostError):
            return
        if owner != signal.text(Field.SENDER) or self._resync is None:
            return
        (sleeping,) = signal.arguments()
        self._stop_timer()
        if sleeping:
            self.pause()
            self._timer = asyncio.get_running_loop().call_later(LONGEST_PAUSE, self._wake_up)
        else:
            self._wake_up()

    def _wake_up(self) -> None:
        self.resume()
        if self._resync:
            self._resync()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
