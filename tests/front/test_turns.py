# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who calls much waits for itself alone."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn import errors
from storaged_conn.bus.wire import Field, Flag, Kind
from storaged_conn.front.callers import Caller
from storaged_conn.front.dispatch import BATCH
from storaged_conn.front.refusals import MAX_REFUSED
from storaged_conn.front.turns import MAX_IN_ALL, MAX_OF_USER, MAX_RUNNING, MAX_WAITING, Turns
from tests.front.stage import USER, Stage, a_call, staged

BUS_ERROR = "org.freedesktop.DBus.Error."
OUR_ERROR = errors.ERROR_PREFIX


# turns


def order(stage: Stage) -> list[str]:
    return [call.caller.sender for call, _ in stage.calls]


async def test_users_are_served_in_turn_and_the_callers_of_one_too() -> None:
    async with staged() as stage:
        for _ in range(50):
            stage.bus.on_call(a_call("Read", "", ":1.100"))
        for sender in (":1.1", USER, USER):
            stage.bus.on_call(a_call("Read", "", sender))
        await stage.until_called(53)
        assert order(stage)[:6] == [":1.100", USER, ":1.1", USER, ":1.100", ":1.100"]


async def test_one_turn_of_the_loop_serves_one_batch() -> None:
    async with staged() as stage:
        for number in range(5 * BATCH):
            stage.bus.on_call(a_call("Read", "", f":1.{number}"))
        served = []
        while len(stage.calls) < 5 * BATCH:
            await asyncio.sleep(0)
            served.append(len(stage.calls))
        assert served[:3] == [BATCH, 2 * BATCH, 3 * BATCH]


async def test_who_has_too_many_calls_waiting_is_refused_more() -> None:
    async with staged() as stage:
        messages = [a_call("Read", str(number)) for number in range(MAX_WAITING + 3)]
        for message in messages:
            stage.bus.on_call(message)
        for message in messages[MAX_WAITING:]:
            reply = await stage.bus.answer(message)
            assert reply.text(Field.ERROR_NAME) == OUR_ERROR + "LimitExceeded"
        other = await stage.ask(a_call("Read", "other", USER))
        assert other.arguments() == ["other"]
        for message in messages[:MAX_WAITING]:
            assert (await stage.bus.answer(message)).kind == Kind.RETURN
        assert (await stage.ask(a_call("Read", "again"))).arguments() == ["again"]


async def test_who_has_too_many_calls_running_waits_and_nobody_else_does() -> None:
    async with staged() as stage:
        for _ in range(MAX_RUNNING):
            stage.bus.on_call(a_call("Wait"))
        await stage.until_called(MAX_RUNNING)
        late = a_call("Read", "late")
        stage.bus.on_call(late)
        assert (await stage.ask(a_call("Read", "other", USER))).arguments() == ["other"]
        assert stage.bus.answers().count(late.serial) == 0
        stage.free.set()
        assert (await stage.bus.answer(late)).arguments() == ["late"]


async def test_while_nobody_takes_the_replies_no_more_are_made() -> None:
    async with staged() as stage:
        messages = [a_call("Read", str(number)) for number in range(3)]
        stage.bus.on_call(messages[0])
        stage.bus.crowd(crowded=True)
        for message in messages[1:]:
            stage.bus.on_call(message)
        for _ in range(10):
            await asyncio.sleep(0)  # a turn of the loop
        assert stage.calls == []
        stage.bus.crowd(crowded=False)
        await stage.bus.answer(messages[2])
        assert stage.bus.answers() == [message.serial for message in messages]


async def test_who_has_left_off_calling_is_forgotten() -> None:
    async with staged() as stage:
        for number in range(10_000):
            member, text = [("Read", ""), ("Write", ""), ("Nothing", None)][number % 3]
            stage.bus.on_call(a_call(member, text, f":1.{number}"))
        await stage.bus.until(lambda: len(stage.bus.sent) == 10_000)
        await asyncio.sleep(0)
        assert not stage.dispatcher._turns._queues
        assert not stage.dispatcher._turns
        assert not stage.dispatcher._turns._pending


async def test_a_call_of_another_waits_for_no_more_than_a_batch_of_a_flood() -> None:
    """However much was called before it: who called too much is told so after it."""
    async with staged() as stage:
        for number in range(20):
            for _ in range(2 * MAX_WAITING):
                stage.bus.on_call(a_call("Read", "", f":3.{number}"))
        await stage.until_called(BATCH)
        sent = len(stage.bus.sent)
        other = a_call("Read", "other", USER)
        stage.bus.on_call(other)
        await stage.bus.answer(other)
        assert stage.bus.answers().index(other.serial) - sent <= 2 * BATCH


async def test_each_refusal_waits_for_a_reply_and_none_for_all_of_them() -> None:
    async with staged() as stage:
        for number in range(MAX_WAITING + BATCH):
            stage.bus.on_call(a_call("Read", str(number)))
        await stage.bus.until(lambda: len(stage.bus.sent) >= 4)
        kinds = [message.kind for message in stage.bus.sent[:4]]
        assert kinds == [Kind.RETURN, Kind.ERROR] * 2


async def test_while_something_waits_to_be_sent_nobody_is_refused_either() -> None:
    async with staged() as stage:
        stage.bus.crowd(crowded=True)
        for number in range(MAX_WAITING + 3):
            stage.bus.on_call(a_call("Read", str(number)))
        for _ in range(10):
            await asyncio.sleep(0)  # a turn of the loop
        assert stage.bus.sent == []
        stage.bus.crowd(crowded=False)
        await stage.bus.until(lambda: len(stage.bus.sent) == MAX_WAITING + 3)


async def test_refusals_are_kept_without_what_was_sent_and_not_for_ever() -> None:
    async with staged() as stage:
        refusals = stage.dispatcher._refusals
        for _ in range(MAX_REFUSED + 5):
            refusals.add(a_call("Read", "x" * 1000), "no")
        refusals.add(a_call("Read", flags=Flag.NO_REPLY_EXPECTED), "no")
        assert len(refusals._waiting) == MAX_REFUSED
        assert {message.body for message, _ in refusals._waiting} == {b""}
        refusals._waiting.clear()


async def test_of_strangers_each_has_its_first_call_kept_and_all_so_many() -> None:
    async with staged() as stage:
        strangers = [f":4.{number}" for number in range(MAX_IN_ALL // MAX_WAITING + 2)]
        stage.callers.strangers |= {*strangers, USER}
        for stranger in strangers:
            for _ in range(MAX_WAITING + 1):
                stage.bus.on_call(a_call("Read", "", stranger))
        stage.bus.on_call(a_call("Read", "first", USER))
        kept = stage.dispatcher._strangers
        assert sum(map(len, kept.values())) <= MAX_IN_ALL + len(strangers)
        assert len(kept[USER]) == 1
        calls = len(strangers) * (MAX_WAITING + 1) + 1
        await stage.bus.until(lambda: len(stage.bus.sent) == calls)


STEPS = st.lists(
    st.tuples(st.sampled_from(["Read", "Write", "Wait", "Nothing"]), st.integers(1, 4)),
    max_size=300,
)


@given(STEPS, st.integers(0, 3))
def test_every_call_is_answered_once(steps: list[tuple[str, int]], pauses: int) -> None:
    async def play() -> None:
        async with staged() as stage:
            messages = []
            for member, number in steps:
                text = "" if member in {"Read", "Write"} else None
                messages.append(a_call(member, text, f":1.{number}"))
                stage.bus.on_call(messages[-1])
                for _ in range(pauses * (number == 1)):
                    await asyncio.sleep(0)
            stage.free.set()
            await stage.bus.until(lambda: len(stage.bus.sent) >= len(messages))
            for _ in range(3):
                await asyncio.sleep(0)
            assert sorted(stage.bus.answers()) == sorted(one.serial for one in messages)
            assert not stage.dispatcher._turns._queues

    asyncio.run(play())


# limits


ALICE = Caller(":1.50", 1000)


def turns() -> Turns:
    return Turns(lambda caller: True)


def test_one_user_has_only_so_many_calls_and_root_as_many_as_its_callers() -> None:
    waiting = turns()
    for number in range(MAX_OF_USER):
        waiting.add(Caller(f":1.{number % 10}", 1000), a_call("Read"))
    with pytest.raises(errors.LimitExceededError, match=f"{MAX_OF_USER} calls of your user"):
        waiting.add(ALICE, a_call("Read"))
    waiting.add(Caller(":1.50", 1001), a_call("Read"))
    for number in range(2 * MAX_OF_USER):
        waiting.add(Caller(f":1.{number % 10}", 0), a_call("Read"))


def test_all_users_have_only_so_many_calls_and_root_its_own() -> None:
    waiting = turns()
    for number in range(MAX_IN_ALL):
        waiting.add(Caller(f":1.{number}", number + 1), a_call("Read"))
    with pytest.raises(errors.LimitExceededError):
        waiting.add(Caller(":1.50", 5000), a_call("Read"))
    waiting.add(Caller(":1.50", 0), a_call("Read"))


def test_who_may_not_have_a_reply_waits_until_it_may() -> None:
    deaf: set[Caller] = {ALICE}
    waiting = Turns(lambda caller: caller not in deaf)
    first, second = a_call("Read"), a_call("Read")
    waiting.add(ALICE, first)
    waiting.add(ALICE, second)
    assert waiting.take() is None
    assert not waiting
    waiting.resume()
    assert waiting.take() is None
    deaf.clear()
    waiting.resume()
    assert waiting.take() == (ALICE, first)
    assert waiting.take() == (ALICE, second)
