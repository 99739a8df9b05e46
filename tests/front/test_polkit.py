# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever polkit does that is not a clear yes is a no, and nothing of it stays behind."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus
from storaged_conn.bus.wire import Message
from storaged_conn.errors import LimitExceededError
from storaged_conn.front import polkit
from storaged_conn.front.actions import Action
from storaged_conn.front.callers import Caller, Callers
from storaged_conn.front.polkit import MAX_CHECKS, MAX_CHECKS_IN_ALL, Polkit, Verdict
from tests.authority import PolkitD, authority
from tests.bus.wires import connected
from tests.live import private_bus

pytestmark = pytest.mark.bus

DETAILS = {"connection_id": "a", "scheme": "nfs", "host": "server"}


class Stage(NamedTuple):
    """Our side of a bus, and somebody on it about whom polkit is asked."""

    address: str
    polkit: Polkit
    caller: Caller
    other: Bus

    async def check(self, uid: int = 1000, *, interactive: bool = False) -> Verdict:
        caller = Caller(self.caller.sender, uid)
        return await self.polkit.check(caller, Action.MANAGE, DETAILS, interactive=interactive)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    with private_bus() as address:
        async with connected(address) as bus, connected(address) as other:
            polkit = Polkit(bus, Callers(bus))
            yield Stage(address, polkit, Caller(other.unique_name, 1000), other)
            assert not polkit._checks
            assert not polkit._prompts


@pytest.fixture
async def polkitd(stage: Stage) -> AsyncIterator[PolkitD]:
    async with authority(stage.address) as polkitd:
        yield polkitd


@pytest.mark.parametrize(
    ("does", "verdict"),
    [
        ("allows", Verdict.YES),
        ("denies", Verdict.NO),
        ("challenges", Verdict.CHALLENGE),
        ("is dismissed", Verdict.DISMISSED),
        ("dies", Verdict.SILENCE),
    ],
)
async def test_what_polkit_says(
    stage: Stage, polkitd: PolkitD, does: str, verdict: Verdict
) -> None:
    polkitd.does = does
    assert await stage.check() is verdict
    (question,) = polkitd.asked
    assert question[:5] == (
        "system-bus-name",
        {"name": stage.caller.sender},
        "org.storage.connection.manage",
        DETAILS,
        0,
    )


async def test_without_polkit_there_is_no_answer_and_one_line_in_the_log(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert await stage.check() is Verdict.SILENCE
    assert caplog.text.count("polkit does not answer") == 1
    async with authority(stage.address):
        assert await stage.check() is Verdict.NO
    assert await stage.check() is Verdict.SILENCE
    assert caplog.text.count("polkit does not answer") == 2


@pytest.mark.parametrize("interactive", [False, True])
async def test_a_question_that_takes_too_long_is_taken_back(
    stage: Stage, polkitd: PolkitD, monkeypatch: pytest.MonkeyPatch, *, interactive: bool
) -> None:
    monkeypatch.setattr(polkit, "PASSWORD" if interactive else "ANSWER", 0.05)
    polkitd.does = "hangs"
    assert await stage.check(interactive=interactive) is Verdict.SILENCE
    await polkitd.until(lambda: polkitd.cancelled)
    assert polkitd.cancelled == [polkitd.asked[0].cancellation]


async def test_a_question_about_somebody_who_leaves_is_taken_back(
    stage: Stage, polkitd: PolkitD
) -> None:
    polkitd.does = "hangs"
    checking = asyncio.create_task(stage.check())
    await polkitd.until(lambda: polkitd.asked)
    stage.other.close()
    with pytest.raises(asyncio.CancelledError):
        await checking
    await polkitd.until(lambda: polkitd.cancelled)
    assert polkitd.cancelled == [polkitd.asked[0].cancellation]


async def test_somebody_who_has_left_is_not_asked_about(stage: Stage, polkitd: PolkitD) -> None:
    polkitd.does = "allows"
    caller = Caller(":1.9999", 1000)
    checking = stage.polkit.check(caller, Action.MANAGE, DETAILS, interactive=False)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(checking)


async def test_a_yes_for_somebody_who_has_left_meanwhile_is_none(
    stage: Stage, polkitd: PolkitD, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the bus were to tell of the leaving too late."""

    async def left(sender: str) -> bool:
        return not polkitd.asked

    polkitd.does = "allows"
    monkeypatch.setattr(stage.polkit._callers, "is_here", left)
    assert await stage.check() is Verdict.NO


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("", []),
        ("b", [True]),
        ("bba{ss}", [True, True, {}]),
        ("(bb)", [[True, False]]),
        ("(iba{ss})", [[1, False, {}]]),
        ("(sba{ss})", [["true", False, {}]]),
        ("(bba{ss})(bba{ss})", [[True, False, {}], [True, False, {}]]),
    ],
)
async def test_an_answer_of_another_form_is_none(
    stage: Stage, polkitd: PolkitD, signature: str, body: list[object]
) -> None:
    def answer(call: Message) -> None:
        polkitd._bus.reply(call, signature, wire.marshal(signature, body))

    polkitd._bus.on_call = answer
    assert await stage.check() is Verdict.SILENCE


async def test_an_answer_that_is_malformed_is_none(stage: Stage, polkitd: PolkitD) -> None:
    polkitd._bus.on_call = lambda call: polkitd._bus.reply(call, "(bba{ss})", b"\1\0\0")
    assert await stage.check() is Verdict.SILENCE


async def test_few_questions_are_asked_at_one_time(stage: Stage, polkitd: PolkitD) -> None:
    polkitd.does = "hangs"
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(stage.check()) for _ in range(MAX_CHECKS)]
        await polkitd.until(lambda: len(polkitd.asked) == MAX_CHECKS)
        with pytest.raises(LimitExceededError):
            await stage.check()
        for number in range(MAX_CHECKS_IN_ALL - MAX_CHECKS):
            asking.append(tasks.create_task(stage.check(2000 + number)))
        await polkitd.until(lambda: len(polkitd.asked) == MAX_CHECKS_IN_ALL)
        with pytest.raises(LimitExceededError):
            await stage.check(1001)
        for one in asking:
            one.cancel()


async def test_one_user_is_asked_for_one_password_at_a_time(stage: Stage, polkitd: PolkitD) -> None:
    polkitd.does = "hangs"
    first = asyncio.create_task(stage.check(interactive=True))
    await polkitd.until(lambda: polkitd.asked)
    assert polkitd.asked[0].flags == polkit.ALLOW_USER_INTERACTION
    with pytest.raises(LimitExceededError, match="asked for a password already"):
        await stage.check(interactive=True)
    polkitd.does = "denies"
    assert await stage.check() is Verdict.NO
    assert await stage.check(1001, interactive=True) is Verdict.NO
    first.cancel()
    await asyncio.wait({first})
    assert await stage.check(interactive=True) is Verdict.NO
