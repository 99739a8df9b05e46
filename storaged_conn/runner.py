# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs one real connection: the core's commands to a driver, its deadline to one timer."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from storaged_conn.core.machine import (
    IN_FLIGHT,
    UP,
    Command,
    Connected,
    ConnectFailed,
    ConnectRefused,
    Disconnected,
    DisconnectFailed,
    Event,
    Hint,
    Lost,
    Machine,
    Stalled,
    State,
    TimerExpired,
)
from storaged_conn.core.model import Observation, Present, Target
from storaged_conn.core.reconcile import reconcile
from storaged_conn.drivers.base import Driver
from storaged_conn.errors import AttemptError, InternalError, PermanentError, ServerSaysNoError
from storaged_conn.system.journal import FIELDS, MESSAGE_IDS, Fields

logger = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[object, object, None]], object]
"""Starts a task that its owner keeps and ends."""

PUBLIC: Final = {
    State.ABSENT: "waiting",
    State.CONNECTING: "connecting",
    State.WITHDRAWING: "connecting",
    State.CONNECTED: "connected",
    State.UNRESPONSIVE: "unresponsive",
    State.WAITING: "waiting",
    State.FAILED: "failed",
    State.DISCONNECTING: "disconnecting",
    State.RETURNING: "disconnecting",
    State.STUCK: "disconnecting",
}
"""The states of dbus/org.storage.Connection1.xml."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all runners share.

    Attributes:
        spawn: starts operations and looks.
        changed: is called with a runner after everything that may show.
        awake: attempts begin only while it is set.
    """

    spawn: Spawn
    changed: Callable[["Runner"], None]
    awake: asyncio.Event


class Runner:
    """One real connection, alive.

    Attributes:
        target: which connection, with the secrets that count. They are one user's: of those that
            hold it and gave any, root, or the one that came first. Of its ids, the one that came
            last counts; or the last holder, once it is released.
        present: what the kernel has of it, as seen last.
        error: what the last operation failed with, or None.
        last_owner: the uid whose id was released last; None where none was in this run.
        since: microseconds of real time at which the public state changed last.
        next_attempt: microseconds of real time at which the next attempt is due, or 0.
    """

    def __init__(
        self,
        target: Target,
        driver: Driver,
        machine: Machine,
        surroundings: Surroundings,
    ) -> None:
        """Nothing is started before somebody holds it.

        Args:
            target: which connection.
            driver: that of its scheme.
            machine: a new one.
            surroundings: shared with the other runners.
        """
        self.target = target
        self.driver = driver
        self.machine = machine
        self.present: Present | None = None
        self.error: AttemptError | None = None
        self.last_owner: int | None = None
        self.since = time.time_ns() // 1000
        self.next_attempt = 0
        self._spawn = surroundings.spawn
        self._changed = surroundings.changed
        self._awake = surroundings.awake
        self._held: dict[str, tuple[Target, int]] = {}  # as each id gave it, and whose it is
        self._timer: asyncio.TimerHandle | None = None
        self._wish: bool | None = None  # a look is due, and whether it is for a hint
        self._looking = False
        self._shown = self.state
        self._said: tuple[str, str] = ("", "")
        self._lost = False

    @property
    def state(self) -> str:
        """The public state: what is there and of no use yet is still being connected."""
        if self._pending:
            return PUBLIC[State.CONNECTING]
        return PUBLIC[self.machine.state]

    @property
    def reason(self) -> str:
        """What StateReason says."""
        match self.machine.state:
            case State.CONNECTED:
                return self._pending
            case State.UNRESPONSIVE:
                return "unresponsive"
            case State.CONNECTING if self._lost:
                return "lost"
            case State.CONNECTING | State.WITHDRAWING:
                return ""
            case State.WAITING if not self.error:
                return "retry-scheduled"
            case _:
                return self.error.reason if self.error else ""

    @property
    def _pending(self) -> str:
        up = self.present if self.machine.state is State.CONNECTED else None
        return up.pending if up else ""

    def admits(self, target: Target, owner: int) -> bool:
        """Say whether a user may hold this too: nobody gets what another one's secrets opened."""
        keeper = self._keeper()
        return keeper in {None, owner} or target.secrets == self.target.secrets

    def hold(self, cid: str, target: Target, owner: int) -> None:
        """Let a connection id of a user want this, with the secrets that it gave.

        What waits or has failed is tried at once where other secrets count from now on.
        """
        self._held[cid] = target, owner
        tried, self.target = self.target, self._choose()
        self._after(self.machine.hold(cid, self._now()))
        self._retry_unless_tried(tried)

    def release(self, cid: str) -> None:
        """Let a connection id go; see hold."""
        _, self.last_owner = self._held.pop(cid)
        tried, self.target = self.target, self._choose()
        self._after(self.machine.release(cid, self._now()))
        self._retry_unless_tried(tried)

    def end(self) -> None:
        """End what an earlier run has left; its machine begins in DISCONNECTING."""
        self._spawn(self._end())

    def retry(self) -> None:
        """Try at once what waits or has failed; anything else stays as it is."""
        self.apply(Hint())

    def apply(self, event: Event) -> None:
        """Take one event: ask the core, re-arm the timer, start the command, announce."""
        if isinstance(event, Lost):
            self.present, self.error, self._lost = None, None, True
        self._after(self.machine.receive(event, self._now()))

    def look(self, *, hint: bool) -> None:
        """Have the kernel's truth read again, now or as soon as the operation in flight ends."""
        self._wish = hint or bool(self._wish)
        self._look_if_due()

    def stop(self) -> None:
        """Let go of the timer; what the kernel has stays as it is."""
        if self._timer:
            self._timer.cancel()

    def _choose(self) -> Target:
        keeper = self._keeper()
        held = [target for target, owner in self._held.values() if keeper in {None, owner}]
        held = held or [self.target]  # with the last one it is disconnected
        return max(reversed(held), key=lambda one: (bool(one.secrets), one.trusted))

    def _keeper(self) -> int | None:
        """Say whose secrets count, if anybody has given any: root's, or those that came first."""
        owners = [owner for target, owner in self._held.values() if target.secrets]
        return 0 if 0 in owners else next(iter(owners), None)

    def _retry_unless_tried(self, tried: Target) -> None:
        if (self.target.secrets, self.target.trusted) != (tried.secrets, tried.trusted):
            self.retry()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _after(self, command: Command | None) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self.next_attempt = 0
        if self.machine.deadline is not None:
            self._arm(self.machine.deadline)
        if self.state != self._shown:
            self._shown, self.since = self.state, time.time_ns() // 1000
        if self.machine.state is State.CONNECTED:
            self._lost, self.error = False, None  # also where it was found, or never went
        self._say()
        if command:
            self._spawn(self._operate(command))
        self._changed(self)
        self._look_if_due()

    def _arm(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(deadline, self._expire)
        if self.machine.state is not State.STUCK:  # there it is not an attempt to connect
            self.next_attempt = int(time.time_ns() // 1000 + (deadline - loop.time()) * 1e6)

    def _expire(self) -> None:
        self.apply(TimerExpired())

    def _say(self) -> None:
        """Log a change once; attempts that end as the last one did are not news."""
        now = (self.state, self.reason)
        if self.machine.state in {State.ABSENT, State.CONNECTING, State.WITHDRAWING}:
            return
        if now == self._said:
            return
        self._said = now
        holders = ", ".join(map(repr, sorted(self.machine.holders))) or "nobody"
        detail = f" ({self.reason}: {self.error})" if self.error else ""
        words = (self.target.uri, holders, self.state, detail)
        logger.info("%s, held by %s: %s%s", *words, extra={FIELDS: [*self._fields()]})

    def _fields(self) -> Fields:
        yield "MESSAGE_ID", MESSAGE_IDS[self.state]
        yield "STORAGE_URI", self.target.uri
        yield "STORAGE_SCHEME", self.target.uri.partition(":")[0]
        yield "STORAGE_STATE", self.state
        yield "STORAGE_REASON", self.reason
        if self.error:
            yield "STORAGE_ERROR", self.error.dbus_name
        for cid in sorted(self.machine.holders):
            yield "STORAGE_CID", cid

    async def _end(self) -> None:
        observed = await self._observe()
        self.present = observed if isinstance(observed, Present) else None
        self._changed(self)
        await self._operate(Command.DISCONNECT)

    async def _operate(self, command: Command) -> None:
        tried = self.target
        try:
            if command is Command.CONNECT:
                await self._awake.wait()
                tried = self.target
                if self.machine.state is State.CONNECTING:  # still wanted, right before the act
                    self.present = await self.driver.connect(tried)
            else:
                await self.driver.disconnect(self.target, self.present)
                self.present = None
            self.error = None
        except AttemptError as error:
            self.error = error
        except Exception as defect:  # noqa: BLE001  # see _contain
            self.error = self._contain(defect)
        self._lost = self._lost and not self.error
        if self._wish and isinstance(self.error, PermanentError):
            self._wish = False  # whatever gave hope came before this answer
        self.apply(self._outcome(command))
        if self.present and not self.present.responsive and self.machine.state in UP:
            self.apply(Stalled(self.present.ours))
        self._retry_unless_tried(tried)

    def _outcome(self, command: Command) -> Event:
        if command is Command.DISCONNECT:
            return DisconnectFailed() if self.error else Disconnected()
        if self.error or not self.present:
            if not isinstance(self.error, PermanentError):
                return ConnectFailed()
            return ConnectRefused(early=isinstance(self.error, ServerSaysNoError))
        return Connected(self.present.ours)

    def _contain(self, defect: Exception) -> InternalError:
        """Keep a driver's defect to its connection: one bad connection must not end all."""
        logger.error("%s: defect in its driver", self.target.uri, exc_info=defect)
        return InternalError("an internal error; the journal has the details: please report it")

    def _look_if_due(self) -> None:
        if self._wish is None or self._looking or self.machine.state in IN_FLIGHT:
            return
        self._looking = True
        self._spawn(self._look(self.machine.attempts))

    async def _look(self, generation: int) -> None:
        hint, self._wish = bool(self._wish), None
        observed = await self._observe()
        self._looking = False
        if self.machine.attempts != generation or self.machine.state in IN_FLIGHT:
            self.look(hint=hint)  # an attempt ran meanwhile: what was seen may be older than it
            return
        if isinstance(observed, Present):
            self.present = observed
        self._reconcile(observed, hint=hint)
        self._look_if_due()

    def _reconcile(self, observed: Observation, *, hint: bool) -> None:
        """Apply what was seen until it says nothing new: what is found may be silent, too."""
        state = None
        while state is not self.machine.state:
            state = self.machine.state
            event = reconcile(state, observed, hint=hint)
            if event:
                self.apply(event)

    async def _observe(self) -> Observation:
        try:
            return await self.driver.observe(self.target)
        except AttemptError:
            return None
        except Exception as defect:  # noqa: BLE001  # see _contain
            self._contain(defect)
            return None
