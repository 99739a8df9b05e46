# SPDX-License-Identifier: LGPL-2.1-or-later
"""Anything may happen, in any order, to several connections: what must hold holds all the time."""

import faulthandler
import os
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storaged_conn.core.machine import (
    UP,
    Command,
    ConnectFailed,
    ConnectRefused,
    DisconnectFailed,
    Hint,
    State,
)
from tests.core.world import World

STORAGES: Final = ("nas", "san", "usb")
CIDS: Final = ("a", "b", "c", "d", "e")

storages = st.sampled_from(STORAGES)
jitters = st.sampled_from((0.0, 0.25, 1.0))


def one_of(name: str) -> st.SearchStrategy[str]:
    """Choose among what a property of the state machine under test gives now."""
    return st.runner().flatmap(lambda life: st.sampled_from(getattr(life, name)))


class Change(Enum):
    """What a kernel or a server does, whatever we want."""

    LOST = auto()
    TAKEN = auto()
    STALLED = auto()
    RECOVERED = auto()
    FLAPPED = auto()


class News(Enum):
    """What is heard about a connection, be it true, old or nothing."""

    EVENT = auto()
    HINT = auto()
    UNKNOWN = auto()
    TIMER = auto()
    REQUEST = auto()


class Life(RuleBasedStateMachine):
    """Clients, a kernel with a will of its own, servers, time, and a daemon that is restarted."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.checks = 0

    # what can be chosen now

    @property
    def known(self) -> list[str]:
        return sorted(self.world.connections)

    @property
    def running(self) -> list[str]:
        operations = {storage: one.running for storage, one in self.world.connections.items()}
        return sorted(storage for storage, one in operations.items() if one and not one.answer)

    @property
    def decided(self) -> list[str]:
        operations = {storage: one.running for storage, one in self.world.connections.items()}
        return sorted(storage for storage, one in operations.items() if one and one.answer)

    @property
    def there(self) -> list[str]:
        return sorted(self.world.kernel.has)

    # clients

    @initialize(wishes=st.dictionaries(st.sampled_from(CIDS), storages, min_size=1))
    def clients_manage(self, wishes: dict[str, str]) -> None:
        for cid, storage in wishes.items():
            self.world.manage(cid, storage, jitter=1)

    @rule(cid=st.sampled_from(CIDS), storage=storages, jitter=jitters)
    def a_client_manages_or_unmanages(self, cid: str, storage: str, jitter: float) -> None:
        if cid in self.world.records:
            self.world.unmanage(cid)
        else:
            self.world.manage(cid, storage, jitter)

    # operations

    @precondition(lambda self: self.running)
    @rule(storage=one_of("running"), heard=st.booleans())
    def an_operation_succeeds(self, storage: str, *, heard: bool) -> None:
        self.world.take_effect(storage)
        if heard:
            self.world.answer(storage)

    @precondition(lambda self: self.running)
    @rule(storage=one_of("running"), refused=st.booleans(), heard=st.booleans())
    def an_operation_fails(self, storage: str, *, refused: bool, heard: bool) -> None:
        operation = self.world.connections[storage].running
        assert operation
        connecting = operation.command is Command.CONNECT
        failure = ConnectRefused() if refused else ConnectFailed()
        self.world.take_effect(storage, failure if connecting else DisconnectFailed())
        if heard:
            self.world.answer(storage)

    @precondition(lambda self: self.decided)
    @rule(storage=one_of("decided"))
    def a_late_answer_is_heard(self, storage: str) -> None:
        self.world.answer(storage)

    # the kernel and the servers, of which news comes at once, or later, or never

    @rule(storage=storages, change=st.sampled_from(Change), told=st.booleans())
    def the_kernel_changes(self, storage: str, change: Change, *, told: bool) -> None:
        has = self.world.kernel.has
        there = has.get(storage)
        match change:
            case Change.LOST:
                has.pop(storage, None)
            case Change.TAKEN:
                has.pop(storage, None)
                self.world.kernel.make(storage, ours=False)
            case Change.FLAPPED if there:
                self.flap(storage)
            case Change.STALLED | Change.RECOVERED if there:
                has[storage] = replace(there, responsive=change is Change.RECOVERED)
        if told and storage in self.world.connections:
            self.world.look(storage)
            self.check_truth(storage)

    def flap(self, storage: str) -> None:
        """Lose it and connect it again, more often than the allowance bears."""
        for _ in range(70):
            self.the_kernel_changes(storage, Change.LOST, told=True)
            if storage not in self.running:
                return
            self.an_operation_succeeds(storage, heard=True)

    # news and time

    @precondition(lambda self: self.known)
    @rule(storage=one_of("known"), news=st.sampled_from(News))
    def news_comes(self, storage: str, news: News) -> None:
        machine = self.world.connections[storage].machine
        before = machine.state
        match news:
            case News.EVENT | News.HINT:
                self.world.look(storage, hint=news is News.HINT)
                self.check_truth(storage)
            case News.UNKNOWN:
                self.world.look(storage, hint=True, known=False)
                assert machine.state is before or before not in UP
            case News.TIMER:
                self.world.expire(storage)
            case News.REQUEST:
                self.world.apply(storage, Hint())

    @rule(seconds=st.sampled_from((0.25, 1.0, 60.0, 600.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @precondition(lambda self: self.checks % 5 == 0)  # or little else would happen
    @rule(jitter=jitters, effective=st.booleans())
    def the_daemon_restarts(self, jitter: float, *, effective: bool) -> None:
        before = dict(self.world.kernel.has)
        self.world.restart(jitter, effective=effective)
        if not effective:
            assert self.world.kernel.has == before

    # what must hold

    def check_truth(self, storage: str) -> None:
        """Check that what was just looked at is believed."""
        machine, there = self.world.connections[storage].machine, self.world.kernel.has.get(storage)
        if machine.state in UP:
            assert there
            assert machine.ours is there.ours
            assert (machine.state is State.CONNECTED) is there.responsive

    @invariant()
    def what_must_hold_holds(self) -> None:
        self.checks += 1
        for storage in self.world.connections:
            self.world.check(storage)

    def teardown(self) -> None:
        """Check what must come when the world calms down."""
        Life.steps += self.checks - 1  # the first check comes before the first step
        self.world.calm_down()
        for storage in self.world.connections:
            self.check_end(storage)

    def check_end(self, storage: str) -> None:
        state = self.world.connections[storage].machine.state
        there = self.world.kernel.has.get(storage)
        if self.world.wanted(storage):
            assert state is State.CONNECTED
            assert there
        else:
            assert state is State.ABSENT
            assert not there or not there.ours or there.name in self.world.kernel.left


def test_what_must_hold_holds_whatever_happens(count_steps: Callable[[int], None]) -> None:
    faulthandler.cancel_dump_traceback_later()  # a long run, or a long search, is no hang
    run_state_machine_as_test(Life)
    count_steps(Life.steps)
    if os.environ.get("HYPOTHESIS_PROFILE") == "long":
        assert Life.steps >= 100_000
