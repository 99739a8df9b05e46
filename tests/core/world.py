# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host in which the core lives: a kernel, a clock, records that survive, and the shell around it.

The shell does what the core asks of its caller: it runs one command at a time, hands `TimerExpired`
in at the deadline, looks again after an operation if there was news meanwhile, and reconciles until
nothing changes. What it asserts is what must hold whenever a command comes out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

from storaged_conn.core.backoff import REFUSED_WAIT
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
    Machine,
    State,
    TimerExpired,
)
from storaged_conn.core.model import Absent, Observation, Present
from storaged_conn.core.reconcile import reconcile

Answer = Connected | ConnectFailed | ConnectRefused | Disconnected | DisconnectFailed

UNWANTED: Final = {State.ABSENT, State.WITHDRAWING, State.DISCONNECTING, State.STUCK}
"""The states of what nobody holds."""


@dataclass
class Kernel:
    """What is connected on this host, whoever connected it; it outlives every daemon.

    Attributes:
        has: target to connection; `ours` is the marker that this service leaves in the kernel.
        left: names of connections that a daemon made, and did not live to end.
    """

    has: dict[str, Present] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    _made: int = 0

    def make(self, target: str, *, ours: bool) -> Present:
        """Connect, or give what is there."""
        if target not in self.has:
            self._made += 1
            self.has[target] = Present(f"connection-{self._made}", ours)
        return self.has[target]

    def observe(self, target: str) -> Present | Absent:
        return self.has.get(target, Absent())


@dataclass
class Operation:
    """A command that runs: first it takes effect, later its answer is heard."""

    command: Command
    present: Present | None
    answer: Answer | None = None


@dataclass
class Connection:
    """One machine with what a runner keeps beside it."""

    machine: Machine
    seen: Present | None = None
    running: Operation | None = None
    news: bool = False


@dataclass
class World:
    """The host, with a daemon that can be restarted."""

    kernel: Kernel = field(default_factory=Kernel)
    records: dict[str, str] = field(default_factory=dict)
    connections: dict[str, Connection] = field(default_factory=dict)
    now: float = 1000.0

    def wanted(self, target: str) -> set[str]:
        """Give the ids that hold a target."""
        return {cid for cid, held in self.records.items() if held == target}

    # what clients do

    def manage(self, cid: str, target: str, jitter: float) -> None:
        self.records[cid] = target
        if target in self.kernel.has:
            self.kernel.left.discard(self.kernel.has[target].name)
        self.take_up(cid, jitter)

    def take_up(self, cid: str, jitter: float) -> None:
        target = self.records[cid]
        one = self.connections.setdefault(target, Connection(Machine(jitter)))
        self.start(target, one.machine.hold(cid, self.now))

    def unmanage(self, cid: str) -> None:
        target = self.records.pop(cid)
        self.start(target, self.connections[target].machine.release(cid, self.now))

    # what the shell does

    def start(self, target: str, command: Command | None) -> None:
        one = self.connections[target]
        if command is None:
            return
        assert one.running is None, f"{target}: two operations at once"
        if command is Command.CONNECT:
            assert self.wanted(target), f"{target}: connected for nobody"
        else:
            assert not self.wanted(target), f"{target}: disconnected while it is wanted"
            assert one.seen, f"{target}: disconnected, and it is not there"
            assert one.seen.ours, f"{target}: disconnected, and it is not ours"
        one.running = Operation(command, one.seen)

    def apply(self, target: str, event: Event) -> None:
        self.start(target, self.connections[target].machine.receive(event, self.now))

    def look(self, target: str, *, hint: bool = False, known: bool = True) -> None:
        """Read the kernel now, or after the operation that runs."""
        one = self.connections[target]
        if one.machine.state in IN_FLIGHT:
            one.news = True
        else:
            self.settle(target, self.kernel.observe(target) if known else None, hint=hint)

    def settle(self, target: str, observed: Observation, *, hint: bool) -> None:
        """Reconcile until nothing changes, which must be soon."""
        one = self.connections[target]
        if observed is not None:
            one.seen = observed if isinstance(observed, Present) else None
        for _ in range(3):
            before = one.machine.state
            event = reconcile(before, observed, hint=hint)
            if event is None:
                return
            self.apply(target, event)
            if one.machine.state is before:
                return
            hint = False
        raise AssertionError(f"{target}: does not settle")

    def expire(self, target: str) -> None:
        """Let the timer come, however late or early."""
        self.apply(target, TimerExpired())
        deadline = self.connections[target].machine.deadline
        assert deadline is None or deadline > self.now, f"{target}: the timer comes without end"

    def pass_time(self, seconds: float) -> None:
        """Let time pass; timers come when they are due."""
        end = self.now + seconds
        while (due := min(self.deadlines(), default=(inf, "")))[0] <= end:
            self.now = max(self.now, due[0])
            self.expire(due[1])
        self.now = end

    def deadlines(self) -> Iterator[tuple[float, str]]:
        for target, one in self.connections.items():
            if one.machine.deadline is not None:
                yield one.machine.deadline, target

    # how operations end

    def take_effect(self, target: str, failure: Answer | None = None) -> None:
        """Let the operation do its work in the kernel, or fail; its answer is not heard yet.

        What is connected already is adopted, whatever the server would have said.
        """
        operation = self.connections[target].running
        assert operation
        there = self.kernel.has.get(target)
        if operation.command is Command.DISCONNECT:
            self._disconnect(target, operation, failure)
        elif there or not failure:
            operation.present = self.kernel.make(target, ours=True)
            operation.answer = Connected(operation.present.ours)
        else:
            operation.answer = failure

    def _disconnect(self, target: str, operation: Operation, failure: Answer | None) -> None:
        operation.answer = failure or Disconnected()
        there = self.kernel.has.get(target)
        if failure or not there or not operation.present:
            return
        if there.name == operation.present.name:
            assert there.ours, f"{target}: what is not ours was disconnected"
            del self.kernel.has[target]

    def answer(self, target: str) -> None:
        """Let the answer be heard, and look if there was news meanwhile."""
        one = self.connections[target]
        operation, one.running = one.running, None
        assert operation
        assert operation.answer
        if isinstance(operation.answer, Connected):
            one.seen = operation.present
        elif isinstance(operation.answer, Disconnected):
            one.seen = None
        self.apply(target, operation.answer)
        news, one.news = one.news, False
        if news:
            self.look(target, hint=True)

    def restart(self, jitter: float, *, effective: bool) -> None:
        """Lose everything but the kernel and the records, and take the records up again.

        Args:
            jitter: of the new machines.
            effective: what ran did its work, and nobody heard of it.
        """
        for target, one in self.connections.items():
            if effective and one.running and not one.running.answer:
                self.take_effect(target)
        self.kernel.left |= {
            present.name
            for target, present in self.kernel.has.items()
            if present.ours and not self.wanted(target)
        }
        self.connections.clear()
        for cid in self.records:
            self.take_up(cid, jitter)

    # what must hold, and what must come

    def calm_down(self) -> None:
        """Let servers answer, operations succeed and time pass, until it is quiet."""
        for target, present in self.kernel.has.items():
            self.kernel.has[target] = replace(present, responsive=True)
        for _ in range(20):
            for target in self.connections:
                self.finish(target)
                self.look(target)
            if self.is_quiet():
                return
            self.pass_time(REFUSED_WAIT)
        raise AssertionError("it never becomes quiet")

    def finish(self, target: str) -> None:
        """Let all operations of a connection succeed that have not failed already."""
        one = self.connections[target]
        for _ in range(3):
            if not one.running:
                return
            if not one.running.answer:
                self.take_effect(target)
            self.answer(target)
        raise AssertionError(f"{target}: starts one operation after the other")

    def is_quiet(self) -> bool:
        return all(
            one.running is None and one.machine.deadline is None
            for one in self.connections.values()
        )

    def check(self, target: str) -> None:
        """Check what must hold of one connection at any moment."""
        one, holders = self.connections[target], self.wanted(target)
        machine, running = one.machine, one.running
        assert machine.holders == holders
        assert (machine.state in UNWANTED) is (not holders)
        assert IN_FLIGHT.get(machine.state) is (running.command if running else None)
        tries = machine.state in {State.WAITING, State.FAILED, State.STUCK}
        assert (machine.deadline is not None) is tries
        assert machine.state in UP or running or tries or not holders, "it never tries again"
        assert machine.deadline is None or machine.deadline <= self.now + REFUSED_WAIT
