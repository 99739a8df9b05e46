# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from storaged_conn.core.machine import Machine, State
from storaged_conn.core.model import Absent, Present, Target
from storaged_conn.core.secret import Secret
from storaged_conn.errors import AuthenticationError, BusyError, TimedOutError, UnreachableError
from storaged_conn.runner import Runner, Surroundings
from tests.fakes import FakeDriver, News

TARGET = Target("fake:a")


class Stage:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.driver = FakeDriver()
        self.news = News()
        self.awake = asyncio.Event()
        self.awake.set()
        self.history: list[tuple[str, str]] = []
        self.runner = Runner(
            TARGET,
            self.driver,
            Machine(0.5),
            Surroundings(tasks.create_task, self.changed, self.awake),
        )

    def changed(self, runner: Runner) -> None:
        self.history.append((runner.state, runner.reason))
        self.news.poke()

    async def until(self, state: str) -> None:
        await self.news.until(lambda: self.runner.state == state)

    @property
    def calls(self) -> list[str]:
        return [what for what, _ in self.driver.calls]

    @property
    def passwords(self) -> str:
        """The password of each connect and disconnect, a - for none."""
        found = [target.secret("password") for target in self.driver.targets]
        return "".join(one.reveal().decode() if one else "-" for one in found)


def with_password(text: str) -> Target:
    return Target("fake:a", (), (("password", Secret(text.encode())),))


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with asyncio.TaskGroup() as tasks:
        stage = Stage(tasks)
        yield stage
        stage.driver.free.set()
        stage.runner.stop()


async def test_what_is_held_is_connected(stage: Stage) -> None:
    stage.runner.hold("c", TARGET, 0)
    assert stage.runner.state == "connecting"
    await stage.until("connected")
    assert stage.runner.reason == ""
    assert stage.runner.present == Present("fake-a", ours=True)
    assert stage.runner.next_attempt == 0


async def test_a_temporary_failure_waits_with_its_reason(stage: Stage) -> None:
    stage.driver.failures.append(UnreachableError("no route to it; wait"))
    stage.runner.hold("c", TARGET, 0)
    await stage.until("waiting")
    assert stage.runner.reason == "server-unreachable"
    assert isinstance(stage.runner.error, UnreachableError)
    in_seconds = stage.runner.next_attempt / 1e6 - time.time()
    assert 0 < in_seconds <= 1


async def test_the_timer_brings_the_next_attempt(stage: Stage) -> None:
    stage.driver.failures.append(UnreachableError("not yet"))
    stage.runner.hold("c", TARGET, 0)
    await stage.until("waiting")
    await stage.until("connected")
    assert stage.calls == ["connect", "connect"]
    assert stage.runner.error is None


async def test_a_permanent_failure_is_failed(stage: Stage) -> None:
    stage.driver.failures.append(AuthenticationError("wrong password; change it"))
    stage.runner.hold("c", TARGET, 0)
    await stage.until("failed")
    assert stage.runner.reason == "authentication"


async def test_a_defect_of_a_driver_ends_only_its_own_connection(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.driver.failures.append(ZeroDivisionError("secret detail"))
    with caplog.at_level(logging.ERROR):
        stage.runner.hold("c", TARGET, 0)
        await stage.until("failed")
    assert stage.runner.reason == "internal-error"
    assert "secret detail" not in str(stage.runner.error)
    assert "ZeroDivisionError" in caplog.text


async def test_retry_does_not_wait_for_the_timer(stage: Stage) -> None:
    stage.driver.failures.append(AuthenticationError("wrong"))
    stage.runner.hold("c", TARGET, 0)
    await stage.until("failed")
    stage.runner.retry()
    await stage.until("connected")


async def fail(stage: Stage, cid: str, target: Target) -> None:
    stage.driver.failures.append(AuthenticationError("wrong password"))
    stage.runner.hold(cid, target, 0)
    await stage.until("failed")


async def test_other_secrets_are_tried_at_once_where_those_before_have_failed(stage: Stage) -> None:
    await fail(stage, "a", with_password("1"))
    stage.runner.hold("b", with_password("2"), 0)
    assert stage.runner.state == "connecting"
    await stage.until("connected")
    assert stage.passwords == "12"


async def test_other_secrets_are_tried_at_once_where_it_waits(stage: Stage) -> None:
    stage.driver.failures.append(UnreachableError("no route"))
    stage.runner.hold("a", with_password("1"), 0)
    await stage.until("waiting")
    stage.runner.hold("b", with_password("2"), 0)
    assert stage.runner.state == "connecting"


@pytest.mark.parametrize("target", [with_password("1"), TARGET])
async def test_the_same_or_no_secrets_are_no_reason_to_try_again(
    stage: Stage, target: Target
) -> None:
    await fail(stage, "a", with_password("1"))
    stage.runner.hold("b", target, 0)
    assert stage.runner.state == "failed"
    stage.runner.release("b")
    assert stage.runner.state == "failed"
    assert stage.passwords == "1"


async def test_secrets_that_come_during_an_attempt_are_tried_after_it(stage: Stage) -> None:
    stage.driver.free.clear()
    stage.driver.failures.append(AuthenticationError("wrong password"))
    stage.runner.hold("a", with_password("1"), 0)
    await asyncio.sleep(0)
    stage.runner.hold("b", with_password("2"), 0)
    stage.driver.free.set()
    await stage.until("connected")
    assert stage.passwords == "12"


async def test_secrets_that_come_while_the_host_sleeps_are_the_first_to_be_tried(
    stage: Stage,
) -> None:
    stage.awake.clear()
    stage.runner.hold("a", with_password("1"), 0)
    await asyncio.sleep(0)
    stage.runner.hold("b", with_password("2"), 0)
    stage.awake.set()
    await stage.until("connected")
    assert stage.passwords == "2"


async def test_other_secrets_do_not_interrupt_what_works(stage: Stage) -> None:
    stage.runner.hold("a", with_password("1"), 0)
    await stage.until("connected")
    stage.runner.hold("b", with_password("2"), 0)
    assert stage.runner.state == "connected"
    stage.driver.kernel.clear()
    stage.runner.look(hint=False)
    await stage.news.until(lambda: stage.runner.machine.reconnects == 1)
    assert stage.passwords == "12"


async def test_the_secrets_of_the_last_who_gave_any_and_still_holds_count(stage: Stage) -> None:
    await fail(stage, "a", with_password("1"))
    await fail(stage, "b", with_password("2"))
    stage.runner.hold("c", TARGET, 0)
    stage.driver.failures.append(AuthenticationError("wrong password"))
    stage.runner.retry()
    await stage.until("failed")
    assert stage.passwords == "122"
    stage.runner.release("b")  # and those of the one before count again
    await stage.until("connected")
    assert stage.passwords == "1221"
    stage.runner.release("a")
    assert stage.runner.target.secrets == ()


async def test_a_password_is_rotated_by_a_new_id(stage: Stage) -> None:
    stage.runner.hold("old", with_password("1"), 0)
    await stage.until("connected")
    stage.runner.hold("new", with_password("2"), 0)
    stage.runner.release("old")
    assert stage.runner.state == "connected"
    stage.runner.release("new")
    await stage.news.until(lambda: stage.runner.machine.state is State.ABSENT)
    assert stage.calls == ["connect", "disconnect"]
    assert stage.passwords == "12"  # the last secrets that counted are there for the disconnect


async def test_a_connection_that_comes_too_late_is_undone(stage: Stage) -> None:
    stage.driver.free.clear()
    stage.runner.hold("c", TARGET, 0)
    await asyncio.sleep(0)
    assert stage.calls == ["connect"]
    stage.runner.release("c")
    stage.driver.free.set()
    await stage.news.until(lambda: stage.runner.machine.state is State.ABSENT)
    assert stage.calls == ["connect", "disconnect"]
    assert stage.driver.kernel == {}
    assert stage.runner.present is None


async def test_what_is_lost_is_connected_again_at_once(stage: Stage) -> None:
    stage.runner.hold("c", TARGET, 0)
    await stage.until("connected")
    stage.driver.kernel.clear()
    stage.runner.look(hint=False)
    await stage.news.until(lambda: stage.runner.machine.reconnects == 1)
    assert stage.history[-2:] == [("connecting", "lost"), ("connected", "")]


async def test_what_is_unknown_changes_nothing(stage: Stage) -> None:
    stage.runner.hold("c", TARGET, 0)
    await stage.until("connected")
    stage.driver.seen.extend([None, TimedOutError("no answer"), RuntimeError("defect")])
    for _ in range(3):
        stage.runner.look(hint=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not stage.driver.seen
    assert stage.runner.state == "connected"
    assert stage.calls == ["connect"]


async def test_a_look_during_an_operation_comes_after_it(stage: Stage) -> None:
    stage.driver.free.clear()
    stage.runner.hold("c", TARGET, 0)
    stage.runner.look(hint=False)
    stage.driver.seen.append(Absent())  # what is seen once the operation has ended
    stage.driver.free.set()
    await stage.news.until(lambda: stage.runner.machine.reconnects == 1)
    assert stage.calls == ["connect", "connect"]


async def test_a_look_that_is_older_than_an_attempt_is_thrown_away(stage: Stage) -> None:
    stage.driver.failures.append(UnreachableError("not yet"))
    stage.runner.hold("c", TARGET, 0)
    await stage.until("waiting")
    stage.driver.free.clear()
    stage.driver.seen.append(Absent())
    stage.runner.look(hint=False)  # begins to look while nothing is there
    await asyncio.sleep(0)
    stage.runner.retry()  # and meanwhile an attempt begins
    stage.driver.free.set()
    await stage.until("connected")
    await asyncio.sleep(0)
    assert stage.runner.state == "connected"
    assert stage.calls == ["connect", "connect"]


async def test_a_hint_tries_at_once_what_waits(stage: Stage) -> None:
    stage.driver.failures.append(UnreachableError("not yet"))
    stage.runner.hold("c", TARGET, 0)
    await stage.until("waiting")
    stage.runner.look(hint=True)
    await stage.until("connected")


async def test_a_hint_from_before_a_refusal_is_no_hope(stage: Stage) -> None:
    stage.driver.free.clear()
    stage.driver.failures.append(AuthenticationError("wrong"))
    stage.runner.hold("c", TARGET, 0)
    stage.runner.look(hint=True)
    stage.driver.free.set()
    await stage.until("failed")
    for _ in range(10):
        await asyncio.sleep(0)
    assert stage.calls == ["connect"]
    stage.runner.look(hint=True)
    await stage.until("connected")


async def test_what_is_of_no_use_yet_is_still_being_connected(stage: Stage) -> None:
    pending = Present("fake-a", ours=True, pending="waiting-for-devices")
    stage.driver.kernel[TARGET.uri] = pending
    stage.runner.hold("c", TARGET, 0)
    await stage.news.until(lambda: stage.runner.present)
    assert stage.runner.machine.state is State.CONNECTED
    assert (stage.runner.state, stage.runner.reason) == ("connecting", "waiting-for-devices")
    since = stage.runner.since
    stage.driver.kernel[TARGET.uri] = Present("fake-a", ours=True)
    stage.runner.look(hint=False)
    await stage.until("connected")
    assert stage.runner.reason == ""
    assert stage.runner.since > since
    stage.driver.kernel[TARGET.uri] = pending
    stage.runner.look(hint=False)
    await stage.until("connecting")
    stage.runner.release("c")
    await stage.until("waiting")
    assert stage.calls == ["connect", "disconnect"]


async def test_a_silent_server_shows_and_its_return_too(stage: Stage) -> None:
    stage.runner.hold("c", TARGET, 0)
    await stage.until("connected")
    stage.driver.seen.append(Present("fake-a", ours=True, responsive=False))
    stage.runner.look(hint=False)
    await stage.until("unresponsive")
    assert stage.runner.reason == "unresponsive"
    stage.runner.look(hint=False)
    await stage.until("connected")
    assert stage.calls == ["connect"]


async def test_what_is_found_silent_while_waiting_is_not_called_connected(stage: Stage) -> None:
    stage.driver.failures.append(UnreachableError("not yet"))
    stage.runner.hold("c", TARGET, 0)
    await stage.until("waiting")
    stage.driver.seen.append(Present("fake-a", ours=False, responsive=False))
    stage.runner.look(hint=False)
    await stage.until("unresponsive")


async def test_a_server_that_is_silent_from_the_start_shows(stage: Stage) -> None:
    stage.driver.kernel["fake:a"] = Present("fake-a", ours=False, responsive=False)
    stage.runner.hold("c", TARGET, 0)
    await stage.until("unresponsive")


async def test_a_busy_connection_is_given_up_later(stage: Stage) -> None:
    stage.runner.hold("c", TARGET, 0)
    await stage.until("connected")
    stage.driver.failures.append(BusyError("in use; close what uses it"))
    stage.runner.release("c")
    await stage.news.until(lambda: stage.runner.machine.state is State.STUCK)
    assert (stage.runner.state, stage.runner.reason) == ("disconnecting", "busy")
    await stage.news.until(lambda: stage.runner.machine.state is State.ABSENT)
    assert stage.calls == ["connect", "disconnect", "disconnect"]


async def test_no_attempt_begins_while_the_host_sleeps(stage: Stage) -> None:
    stage.awake.clear()
    stage.runner.hold("c", TARGET, 0)
    await asyncio.sleep(0)
    assert stage.calls == []
    stage.awake.set()
    await stage.until("connected")


async def test_what_nobody_wants_after_a_sleep_is_not_attempted(stage: Stage) -> None:
    stage.awake.clear()
    stage.runner.hold("c", TARGET, 0)
    await asyncio.sleep(0)
    stage.runner.release("c")
    stage.awake.set()
    await stage.news.until(lambda: stage.runner.machine.state is State.ABSENT)
    assert stage.calls == []


async def test_attempts_that_end_alike_are_logged_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.driver.failures.extend(UnreachableError("no route") for _ in range(3))
    with caplog.at_level(logging.INFO):
        stage.runner.hold("line\nbreak", TARGET, 0)
        for _ in range(3):
            await stage.until("waiting")
            stage.runner.retry()
        await stage.until("connected")
    assert [record.getMessage() for record in caplog.records] == [
        r"fake:a, held by 'line\nbreak': waiting (server-unreachable: no route)",
        r"fake:a, held by 'line\nbreak': connected",
    ]


# whose secrets count


async def test_the_secrets_of_one_user_count_and_root_comes_first(stage: Stage) -> None:
    runner = stage.runner
    runner.hold("first", with_password("1"), 1000)
    runner.hold("other", with_password("2"), 1001)
    assert runner.target.secrets == with_password("1").secrets
    runner.hold("again", with_password("3"), 1000)
    assert runner.target.secrets == with_password("3").secrets
    runner.hold("root", with_password("4"), 0)
    assert runner.target.secrets == with_password("4").secrets
    runner.release("root")
    runner.release("first")
    runner.release("again")
    assert runner.target.secrets == with_password("2").secrets
    await stage.until("connected")


async def test_the_hosts_own_credentials_are_used_while_root_wants_it(stage: Stage) -> None:
    runner, trusted = stage.runner, replace(TARGET, trusted=True)
    runner.hold("user", TARGET, 1000)
    assert not runner.target.trusted
    runner.hold("root", trusted, 0)
    runner.hold("other", TARGET, 1001)
    assert runner.target.trusted
    runner.hold("with", with_password("1"), 1000)
    assert not runner.target.trusted
    assert runner.target.secrets == with_password("1").secrets
    runner.release("with")
    runner.release("root")
    assert not runner.target.trusted
    await stage.until("connected")


async def test_what_the_host_has_is_tried_at_once_where_nothing_was_wanted(stage: Stage) -> None:
    stage.driver.failures.append(AuthenticationError("who are you?"))
    stage.runner.hold("user", TARGET, 1000)
    await stage.until("failed")
    stage.runner.hold("root", replace(TARGET, trusted=True), 0)
    await stage.until("connected")


async def test_nobody_holds_what_the_secrets_of_another_have_opened(stage: Stage) -> None:
    runner = stage.runner
    assert runner.admits(TARGET, 1001)
    runner.hold("one", with_password("1"), 1000)
    assert runner.admits(TARGET, 1000)
    assert runner.admits(with_password("1"), 1001)
    assert not runner.admits(TARGET, 1001)
    assert not runner.admits(with_password("2"), 1001)
    runner.release("one")
    assert runner.admits(TARGET, 1001)
    await stage.news.until(lambda: not stage.driver.running)
