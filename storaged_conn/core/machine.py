# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of one real connection, whoever holds it: one table.

Two rules. Everything that decides what a connection does next is in this file. This file does not
know what a connection is: no protocol, no clock, no bus.

A connection is *held* by the connection ids that want it. Events come in through `hold`, `release`
and `receive`; what comes out is at most one command, and a deadline at which the caller must hand
in `TimerExpired`. The caller runs one command at a time and reports how it ended; it never has to
cancel one, because a kernel's connect cannot be cancelled: the table waits for its answer and then
undoes what nobody wants any more (WITHDRAWING).

    ABSENT        Wanted → CONNECTING
    CONNECTING    Unwanted → WITHDRAWING
                  Connected → CONNECTED
                  ConnectFailed → WAITING
                  ConnectRefused → FAILED
    WITHDRAWING   Wanted → CONNECTING
                  Connected → DISCONNECTING
                  ConnectFailed → ABSENT
                  ConnectRefused → ABSENT
    CONNECTED     Unwanted → DISCONNECTING
                  Lost → CONNECTING
                  Stalled → UNRESPONSIVE
    UNRESPONSIVE  Unwanted → DISCONNECTING
                  Lost → CONNECTING
                  Recovered → CONNECTED
    WAITING       Unwanted → ABSENT
                  Found → CONNECTED
                  Hint → CONNECTING
                  TimerExpired → CONNECTING
    FAILED        Unwanted → ABSENT
                  Found → CONNECTED
                  Hint → CONNECTING
                  TimerExpired → CONNECTING
    DISCONNECTING Wanted → RETURNING
                  Disconnected → ABSENT
                  DisconnectFailed → STUCK
    RETURNING     Unwanted → DISCONNECTING
                  Disconnected → CONNECTING
                  DisconnectFailed → CONNECTED
    STUCK         Wanted → CONNECTED
                  Lost → ABSENT
                  TimerExpired → DISCONNECTING

What the table cannot say, and `_enter` does:

- What was not made by us is not ours to end: a transition to DISCONNECTING of a connection that
  was only adopted goes to ABSENT instead, and so does STUCK when another stands where ours stood.
- Events start attempts at once, but not without bound: when the allowance is spent, a transition to
  CONNECTING goes to WAITING instead, until there is an allowance again, and never for longer than
  it would have waited without the event.
- A command is started on entry of its state, except where its state is entered back from the
  neighbour that waits for the same answer (WITHDRAWING and RETURNING): that operation still runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from typing import Final

from storaged_conn.core.backoff import REFUSED_WAIT, Allowance, spread, wait_seconds


class State(Enum):
    """Where the life of a real connection stands."""

    ABSENT = auto()
    CONNECTING = auto()
    WITHDRAWING = auto()
    CONNECTED = auto()
    UNRESPONSIVE = auto()
    WAITING = auto()
    FAILED = auto()
    DISCONNECTING = auto()
    RETURNING = auto()
    STUCK = auto()


class Command(Enum):
    """What the caller must start, and report the end of."""

    CONNECT = auto()
    DISCONNECT = auto()


@dataclass(frozen=True, slots=True)
class Wanted:
    """The first connection id holds it."""


@dataclass(frozen=True, slots=True)
class Unwanted:
    """The last connection id let go of it."""


@dataclass(frozen=True, slots=True)
class Connected:
    """CONNECT ended well; `ours` where this service made the connection, now or before."""

    ours: bool


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """CONNECT failed in a way that may pass."""


@dataclass(frozen=True, slots=True)
class ConnectRefused:
    """CONNECT failed, and the same answer would come again.

    `early` where that is not so if the server has only just begun to serve.
    """

    early: bool = False


@dataclass(frozen=True, slots=True)
class Disconnected:
    """DISCONNECT ended well, or there was nothing left to end."""


@dataclass(frozen=True, slots=True)
class DisconnectFailed:
    """DISCONNECT failed; the kernel still has the connection."""


@dataclass(frozen=True, slots=True)
class Found:
    """The kernel has the connection; `ours` as in Connected."""

    ours: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """The kernel does not have the connection (any more)."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """The kernel has the connection, and the server does not answer; `ours` as in Connected."""

    ours: bool


@dataclass(frozen=True, slots=True)
class Recovered:
    """The server answers again on what the kernel has; `ours` as in Connected."""

    ours: bool


@dataclass(frozen=True, slots=True)
class Hint:
    """Something happened that may make an attempt succeed, or somebody asks for one now."""


@dataclass(frozen=True, slots=True)
class TimerExpired:
    """The deadline has come."""


Event = (
    Wanted
    | Unwanted
    | Connected
    | ConnectFailed
    | ConnectRefused
    | Disconnected
    | DisconnectFailed
    | Found
    | Lost
    | Stalled
    | Recovered
    | Hint
    | TimerExpired
)


class WrongStateError(Exception):
    """The caller broke the protocol of this file; nothing was changed."""


# What is seen or timed may come at any moment, also late: where it changes nothing it is listed as
# staying, so that an event missing from a row is always a mistake of the caller.
TRANSITIONS: Final[Mapping[State, Mapping[type[Event], State]]] = {
    State.ABSENT: {
        Wanted: State.CONNECTING,
        Found: State.ABSENT,  # somebody else's; the listing of the unmanaged shows it
        Lost: State.ABSENT,
        Stalled: State.ABSENT,
        Recovered: State.ABSENT,
        Hint: State.ABSENT,
        TimerExpired: State.ABSENT,
    },
    State.CONNECTING: {
        Unwanted: State.WITHDRAWING,
        Connected: State.CONNECTED,
        ConnectFailed: State.WAITING,
        ConnectRefused: State.FAILED,
        Found: State.CONNECTING,  # the echo of our own attempt: its answer decides
        Lost: State.CONNECTING,
        Stalled: State.CONNECTING,
        Recovered: State.CONNECTING,
        Hint: State.CONNECTING,
        TimerExpired: State.CONNECTING,
    },
    State.WITHDRAWING: {
        Wanted: State.CONNECTING,
        Connected: State.DISCONNECTING,  # came too late: undone, not kept
        ConnectFailed: State.ABSENT,
        ConnectRefused: State.ABSENT,
        Found: State.WITHDRAWING,
        Lost: State.WITHDRAWING,
        Stalled: State.WITHDRAWING,
        Recovered: State.WITHDRAWING,
        Hint: State.WITHDRAWING,
        TimerExpired: State.WITHDRAWING,
    },
    State.CONNECTED: {
        Unwanted: State.DISCONNECTING,
        Found: State.CONNECTED,
        Lost: State.CONNECTING,
        Stalled: State.UNRESPONSIVE,
        Recovered: State.CONNECTED,
        Hint: State.CONNECTED,
        TimerExpired: State.CONNECTED,
    },
    State.UNRESPONSIVE: {
        Unwanted: State.DISCONNECTING,
        Found: State.UNRESPONSIVE,  # that the kernel has it says nothing about the server
        Lost: State.CONNECTING,
        Stalled: State.UNRESPONSIVE,
        Recovered: State.CONNECTED,
        Hint: State.UNRESPONSIVE,
        TimerExpired: State.UNRESPONSIVE,
    },
    State.WAITING: {
        Unwanted: State.ABSENT,
        Found: State.CONNECTED,
        Lost: State.WAITING,
        Stalled: State.WAITING,
        Recovered: State.WAITING,
        Hint: State.CONNECTING,
        TimerExpired: State.CONNECTING,
    },
    State.FAILED: {
        Unwanted: State.ABSENT,
        Found: State.CONNECTED,
        Lost: State.FAILED,
        Stalled: State.FAILED,
        Recovered: State.FAILED,
        Hint: State.CONNECTING,
        TimerExpired: State.CONNECTING,
    },
    State.DISCONNECTING: {
        Wanted: State.RETURNING,
        Disconnected: State.ABSENT,
        DisconnectFailed: State.STUCK,
        Found: State.DISCONNECTING,
        Lost: State.DISCONNECTING,  # the echo of our own doing: its answer decides
        Stalled: State.DISCONNECTING,
        Recovered: State.DISCONNECTING,
        Hint: State.DISCONNECTING,
        TimerExpired: State.DISCONNECTING,
    },
    State.RETURNING: {
        Unwanted: State.DISCONNECTING,
        Disconnected: State.CONNECTING,
        DisconnectFailed: State.CONNECTED,  # it never went: it is what is wanted now
        Found: State.RETURNING,
        Lost: State.RETURNING,
        Stalled: State.RETURNING,
        Recovered: State.RETURNING,
        Hint: State.RETURNING,
        TimerExpired: State.RETURNING,
    },
    State.STUCK: {
        Wanted: State.CONNECTED,
        Found: State.STUCK,
        Lost: State.ABSENT,
        Stalled: State.STUCK,
        Recovered: State.STUCK,
        Hint: State.STUCK,
        TimerExpired: State.DISCONNECTING,
    },
}

ON_ENTRY: Final[Mapping[State, Command]] = {
    State.CONNECTING: Command.CONNECT,
    State.DISCONNECTING: Command.DISCONNECT,
}

IN_FLIGHT: Final[Mapping[State, Command]] = {
    State.CONNECTING: Command.CONNECT,
    State.WITHDRAWING: Command.CONNECT,
    State.DISCONNECTING: Command.DISCONNECT,
    State.RETURNING: Command.DISCONNECT,
}
"""The states in which an operation runs, and which."""

ANSWERS: Final = (Connected, ConnectFailed, ConnectRefused, Disconnected, DisconnectFailed)
"""The events that say how the operation in flight ended."""

UP: Final = frozenset({State.CONNECTED, State.UNRESPONSIVE})
"""The states in which the kernel has a connection that somebody wants."""


@dataclass(slots=True)
class Machine:
    """One real connection.

    Attributes:
        jitter: 0 to 1, drawn once by the caller: this connection's place in the spread of waits.
        holders: the connection ids that want it.
        ours: whether this service made what the kernel has.
        deadline: monotonic seconds at which `TimerExpired` is due, or None.
        attempts: CONNECT commands in all.
        reconnects: times that a connection was up again after it had been lost.
    """

    jitter: float
    state: State = State.ABSENT
    holders: set[str] = field(default_factory=set)
    ours: bool = False
    deadline: float | None = None
    attempts: int = 0
    reconnects: int = 0
    _failures: int = 0
    _lost: bool = False
    _allowance: Allowance = field(default_factory=Allowance)

    def hold(self, cid: str, now: float) -> Command | None:
        """Let a connection id want this; the first one starts it."""
        first = not self.holders
        self.holders.add(cid)
        return self.receive(Wanted(), now) if first else None

    def release(self, cid: str, now: float) -> Command | None:
        """Let a connection id go; with the last one the connection ends."""
        self.holders.remove(cid)
        return None if self.holders else self.receive(Unwanted(), now)

    def receive(self, event: Event, now: float) -> Command | None:
        """Take one event and say what to start.

        Raises:
            WrongStateError: the event cannot happen here; nothing was changed.
        """
        new = TRANSITIONS[self.state].get(type(event))
        if new is None:
            raise WrongStateError(f"{type(event).__name__} in {self.state.name}")
        if isinstance(event, (Connected, Found, Stalled, Recovered)):
            self.ours = event.ours  # another may stand where ours stood, in any state
        if new is State.STUCK and not self.ours:
            new = State.ABSENT
        if new is self.state:
            return None
        self._count(event)
        return self._enter(new, event, now)

    def _count(self, event: Event) -> None:
        match event:
            case ConnectFailed() | ConnectRefused() | DisconnectFailed():
                self._failures += 1
            case Connected() | Found():
                self.reconnects += self._lost and bool(self.holders)
                self._failures, self._lost = 0, False
            case Lost():
                self._failures, self._lost = 0, True
            case Wanted() | Unwanted() | Disconnected():
                self._failures, self._lost = 0, False
            case _:
                pass

    def _enter(self, new: State, event: Event, now: float) -> Command | None:
        running = None if isinstance(event, ANSWERS) else IN_FLIGHT.get(self.state)
        due, self.deadline = self.deadline, None
        if new is State.DISCONNECTING and running is None and not self.ours:
            new = State.ABSENT
        elif new is State.CONNECTING:
            pause = self._hold_back(event, now)
            if pause:
                new, self.deadline = State.WAITING, min(now + pause, due or inf)
        elif new in {State.WAITING, State.STUCK}:
            self.deadline = now + wait_seconds(self._failures, self.jitter)
        elif new is State.FAILED:
            self.deadline = now + self._after_refusal(event)
        self.state = new
        command = None if running else ON_ENTRY.get(new)
        self.attempts += command is Command.CONNECT
        return command

    def _after_refusal(self, event: Event) -> float:
        if isinstance(event, ConnectRefused) and event.early:
            return wait_seconds(self._failures, self.jitter, REFUSED_WAIT)
        return spread(REFUSED_WAIT, self.jitter)

    def _hold_back(self, event: Event, now: float) -> float:
        match event:
            case Hint() | Lost():
                return self._allowance.take(now)
            case TimerExpired():
                self._allowance.spend(now)
            case _:
                pass
        return 0
