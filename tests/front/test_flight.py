# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who does not read gets no more than so much, and goes on when it has read."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from storaged_conn.bus.connection import CallError
from storaged_conn.bus.wire import Variant
from storaged_conn.front.callers import Caller
from storaged_conn.front.flight import (
    MAX_CALLERS,
    MAX_IN_ALL,
    MAX_OF_CALLER,
    MAX_OF_USER,
    Flight,
)
from tests.fakes import News
from tests.front.stage import FakeBus

ALICE = Caller(":1.1", 1000)
BOB = Caller(":1.2", 1001)
ROOT = Caller(":1.3", 0)
STEP = MAX_OF_CALLER - 1000


class CountingBus(FakeBus):
    """Keeps what it is told to, as dbus-daemon would say; says nothing while there is None."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, int] | None = {}
        self.asked = 0
        self.asking: Callable[[], None] = lambda: None

    async def call(self, *arguments: Any, **_: object) -> list[object]:
        (sender,) = arguments[2]
        self.asked += 1
        self.asking()
        await asyncio.sleep(0)
        if self.kept is None:
            raise CallError("org.freedesktop.DBus.Error.UnknownMethod", "")
        if sender not in self.kept:
            raise CallError("org.freedesktop.DBus.Error.NameHasNoOwner", "")
        return [{"OutgoingBytes": Variant("u", self.kept[sender])}]


class Stage:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.bus = CountingBus()
        self.news = News()
        self.bus.asking = self.news.poke
        self.flight = Flight(self.bus, tasks.create_task, self.news.poke)

    def sends(self, caller: Caller, size: int) -> None:
        for _ in range(size // STEP):
            self.flight.sent(caller, STEP)

    async def room_for(self, caller: Caller) -> None:
        await self.news.until(lambda: self.flight.has_room(caller))


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with asyncio.TaskGroup() as tasks:
        yield Stage(tasks)


async def test_who_reads_has_room_again_as_soon_as_the_bus_says_so(stage: Stage) -> None:
    stage.bus.kept = {ALICE.sender: 0}
    stage.flight.sent(ALICE, MAX_OF_CALLER)
    assert not stage.flight.has_room(ALICE)
    assert stage.flight.has_room(BOB)
    await stage.room_for(ALICE)
    assert stage.bus.asked == 1
    assert not stage.flight._of_users


async def test_who_does_not_read_has_no_room_until_it_does(stage: Stage) -> None:
    stage.bus.kept = {ALICE.sender: MAX_OF_CALLER}
    stage.flight.sent(ALICE, MAX_OF_CALLER)
    assert not stage.flight.has_room(ALICE)
    await stage.news.until(lambda: stage.bus.asked == 3)
    assert not stage.flight.has_room(ALICE)
    assert stage.news.heard == ["poked"] * 3  # by the questions alone
    stage.bus.kept = {ALICE.sender: 10}
    await stage.room_for(ALICE)
    assert stage.flight._of_users[ALICE.uid] == 10


async def test_who_has_left_is_forgotten(stage: Stage) -> None:
    stage.flight.sent(ALICE, MAX_OF_CALLER)
    await stage.room_for(ALICE)
    assert not stage.flight._unread


async def test_a_bus_that_does_not_say_what_it_keeps_is_asked_once(stage: Stage) -> None:
    stage.bus.kept = None
    stage.flight.sent(ALICE, MAX_OF_CALLER)
    await stage.room_for(ALICE)
    stage.flight.sent(ALICE, 2 * MAX_OF_CALLER)
    assert stage.flight.has_room(ALICE)
    assert stage.bus.asked == 1


async def test_the_callers_of_one_user_share_what_it_may_leave_unread(stage: Stage) -> None:
    callers = [Caller(f":1.{number}", 1000) for number in range(10, 40)]
    stage.bus.kept = {caller.sender: STEP for caller in callers}
    for caller in callers:
        stage.flight.sent(caller, STEP)
    assert STEP * len(callers) > MAX_OF_USER
    assert not stage.flight.has_room(ALICE)
    assert stage.flight.has_room(BOB)
    assert stage.flight.has_room(ROOT)
    assert stage.flight.may_hear(ALICE)
    stage.sends(ALICE, MAX_OF_USER)
    assert not stage.flight.may_hear(ALICE)
    assert stage.flight.may_hear(BOB)
    stage.bus.kept = {}
    await stage.room_for(ALICE)


async def test_all_users_together_leave_room_for_root(stage: Stage) -> None:
    number = MAX_IN_ALL // STEP + 1
    for uid in range(1, number + 1):
        stage.flight.sent(Caller(f":2.{uid}", uid), STEP)
    assert not stage.flight.has_room(BOB)
    assert stage.flight.has_room(ROOT)
    await stage.room_for(BOB)


async def test_those_who_come_and_go_are_not_remembered_for_ever(stage: Stage) -> None:
    for number in range(MAX_CALLERS + 1):
        stage.flight.sent(Caller(f":3.{number}", 1000), 1)
    await stage.news.until(lambda: stage.bus.asked > MAX_CALLERS)
    for _ in range(10):
        await asyncio.sleep(0)  # a turn of the loop
    assert stage.bus.asked == MAX_CALLERS + 1
    assert not stage.flight._unread
