# SPDX-License-Identifier: LGPL-2.1-or-later
"""The invariants of the core, as dialogues with one machine."""

from itertools import pairwise

import pytest

from storaged_conn.core.machine import (
    Command,
    ConnectFailed,
    ConnectRefused,
    Disconnected,
    DisconnectFailed,
    Found,
    Hint,
    Lost,
    Machine,
    Recovered,
    Stalled,
    State,
    TimerExpired,
)
from tests.core.dialogue import OURS, THEIRS, machine_in

# At most one operation, and what comes too late is undone.


def test_a_connect_that_ends_after_nobody_wants_it_any_more_is_undone() -> None:
    machine = Machine(jitter=1)
    assert machine.hold("a", 0) is Command.CONNECT
    assert machine.release("a", 1) is None
    assert machine.receive(OURS, 2) is Command.DISCONNECT
    assert machine.receive(Disconnected(), 3) is None
    assert (machine.state, machine.attempts) == (State.ABSENT, 1)


@pytest.mark.parametrize("answer", [ConnectFailed(), ConnectRefused()])
def test_a_connect_that_fails_after_nobody_wants_it_any_more_is_not_repeated(
    answer: ConnectFailed | ConnectRefused,
) -> None:
    machine = machine_in(State.WITHDRAWING)
    assert machine.receive(answer, 2) is None
    assert (machine.state, machine.deadline) == (State.ABSENT, None)
    for late in (TimerExpired(), Hint(), Lost()):
        assert machine.receive(late, 3) is None
    assert (machine.state, machine.attempts) == (State.ABSENT, 1)


def test_who_comes_back_while_the_connect_still_runs_gets_its_result() -> None:
    machine = machine_in(State.WITHDRAWING)
    assert machine.hold("b", 1) is None
    assert machine.receive(OURS, 2) is None
    assert (machine.state, machine.holders, machine.attempts) == (State.CONNECTED, {"b"}, 1)


def test_who_comes_back_while_the_disconnect_still_runs_waits_for_it_and_connects() -> None:
    machine = machine_in(State.DISCONNECTING)
    assert machine.hold("a", 1) is None
    assert machine.state is State.RETURNING
    assert machine.receive(Disconnected(), 2) is Command.CONNECT
    assert machine.receive(OURS, 3) is None
    assert (machine.state, machine.attempts, machine.reconnects) == (State.CONNECTED, 2, 0)


def test_minds_changed_during_a_disconnect_never_start_a_second_one() -> None:
    machine = machine_in(State.DISCONNECTING)
    for _ in range(3):
        assert machine.hold("a", 1) is None
        assert machine.release("a", 1) is None
    assert machine.receive(Disconnected(), 2) is None
    assert machine.state is State.ABSENT


def test_minds_changed_during_a_connect_never_start_a_second_one() -> None:
    machine = machine_in(State.CONNECTING)
    for _ in range(3):
        assert machine.release("a", 1) is None
        assert machine.hold("a", 1) is None
    assert machine.receive(OURS, 2) is None
    assert (machine.state, machine.attempts) == (State.CONNECTED, 1)


def test_what_could_not_be_disconnected_is_kept_by_who_comes_back() -> None:
    machine = machine_in(State.RETURNING)
    assert machine.receive(DisconnectFailed(), 1) is None
    assert (machine.state, machine.deadline, machine.ours) == (State.CONNECTED, None, True)


# Wanted, then connected, however often it fails.


def test_the_waits_grow_to_a_minute_and_never_end() -> None:
    machine, now, waits = machine_in(State.CONNECTING), 0.0, []
    for _ in range(10):
        assert machine.receive(ConnectFailed(), now) is None
        assert machine.deadline is not None
        waits.append(machine.deadline - now)
        now = machine.deadline
        assert machine.receive(TimerExpired(), now) is Command.CONNECT
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert machine.receive(OURS, now) is None
    assert (machine.state, machine.attempts) == (State.CONNECTED, 11)


def test_two_connections_that_fail_together_do_not_return_in_step() -> None:
    machines = [machine_in(State.CONNECTING, jitter=jitter) for jitter in (0, 0.25, 1)]
    for machine in machines:
        machine.receive(ConnectFailed(), 100)
    assert [machine.deadline for machine in machines] == [100.5, 100.625, 101]


@pytest.mark.parametrize(("jitter", "seconds"), [(0, 300), (1, 600)])
def test_what_was_refused_is_tried_again_after_some_minutes(jitter: float, seconds: float) -> None:
    machine = machine_in(State.CONNECTING, jitter=jitter)
    for now in (0, 1000, 2000):
        assert machine.receive(ConnectRefused(), now) is None
        assert (machine.state, machine.deadline) == (State.FAILED, now + seconds)
        assert machine.receive(TimerExpired(), now + seconds) is Command.CONNECT


def test_what_a_server_does_not_offer_yet_is_asked_for_again_soon_and_then_seldom() -> None:
    machine, now, waits = machine_in(State.CONNECTING, jitter=1), 0.0, []
    for _ in range(12):
        assert machine.receive(ConnectRefused(early=True), now) is None
        assert machine.state is State.FAILED
        assert machine.deadline is not None
        waits.append(machine.deadline - now)
        now = machine.deadline
        assert machine.receive(TimerExpired(), now) is Command.CONNECT
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]


def test_what_is_lost_is_connected_at_once_and_counted() -> None:
    machine = machine_in(State.CONNECTED)
    for count in (1, 2, 3):
        assert machine.receive(Lost(), 10) is Command.CONNECT
        assert machine.receive(OURS, 10) is None
        assert (machine.state, machine.reconnects) == (State.CONNECTED, count)


def test_after_a_loss_the_waits_begin_anew() -> None:
    machine = machine_in(State.RETURNING)
    machine.receive(DisconnectFailed(), 0)
    machine.receive(Lost(), 0)
    machine.receive(ConnectFailed(), 0)
    assert machine.deadline == 1


def test_a_server_that_stalls_and_recovers_is_left_alone() -> None:
    machine = machine_in(State.CONNECTED)
    assert machine.receive(Stalled(ours=True), 1) is None
    assert machine.state is State.UNRESPONSIVE
    assert machine.receive(Hint(), 2) is None
    assert machine.receive(Recovered(ours=True), 3) is None
    assert (machine.state, machine.attempts, machine.reconnects) == (State.CONNECTED, 1, 0)


def test_somebody_elses_connection_is_taken_while_ours_waits() -> None:
    machine = machine_in(State.WAITING)
    assert machine.receive(Found(ours=False), 0.5) is None
    assert (machine.state, machine.deadline, machine.ours) == (State.CONNECTED, None, False)
    assert machine.reconnects == 1


# Not wanted, then never tried.


@pytest.mark.parametrize(
    "state", [state for state in State if not machine_in(state).holders], ids=lambda s: s.name
)
def test_nothing_starts_an_attempt_that_nobody_wants(state: State) -> None:
    for event in (Hint(), Lost(), TimerExpired(), Found(ours=True), Stalled(ours=True)):
        assert machine_in(state).receive(event, 5) is not Command.CONNECT


@pytest.mark.parametrize("state", [State.WAITING, State.FAILED])
def test_who_lets_go_while_it_waits_ends_the_waiting(state: State) -> None:
    machine = machine_in(state)
    assert machine.release("a", 1) is None
    assert (machine.state, machine.deadline) == (State.ABSENT, None)
    assert machine.receive(TimerExpired(), 2) is None
    assert machine.state is State.ABSENT


# Only what is ours is disconnected, and only when the last has let go.


def test_what_was_adopted_is_left_connected() -> None:
    machine = machine_in(State.CONNECTING)
    machine.receive(THEIRS, 1)
    assert machine.release("a", 2) is None
    assert machine.state is State.ABSENT


def test_what_was_adopted_too_late_is_left_connected() -> None:
    machine = machine_in(State.WITHDRAWING)
    assert machine.receive(THEIRS, 1) is None
    assert machine.state is State.ABSENT


def test_the_connection_ends_with_its_last_holder() -> None:
    machine = machine_in(State.CONNECTED)
    assert machine.hold("b", 1) is None
    assert machine.release("a", 2) is None
    assert machine.state is State.CONNECTED
    assert machine.release("b", 3) is Command.DISCONNECT


@pytest.mark.parametrize("event", [Found, Stalled, Recovered])
@pytest.mark.parametrize("state", [State.CONNECTED, State.UNRESPONSIVE])
def test_what_somebody_else_put_in_the_place_of_ours_is_left_connected(
    state: State, event: type[Found | Stalled | Recovered]
) -> None:
    machine = machine_in(state)
    machine.receive(event(ours=False), 1)
    assert machine.release("a", 2) is None
    assert machine.state is State.ABSENT


def test_a_disconnect_that_fails_is_tried_again_and_again() -> None:
    machine, now = machine_in(State.DISCONNECTING), 0.0
    for wait in (1, 2, 4):
        assert machine.receive(DisconnectFailed(), now) is None
        assert (machine.state, machine.deadline) == (State.STUCK, now + wait)
        now += wait
        assert machine.receive(TimerExpired(), now) is Command.DISCONNECT
    assert machine.receive(Disconnected(), now) is None
    assert machine.state is State.ABSENT


def test_what_was_stuck_and_went_by_itself_is_gone() -> None:
    machine = machine_in(State.STUCK)
    assert machine.receive(Lost(), 0.5) is None
    assert (machine.state, machine.deadline) == (State.ABSENT, None)


def test_what_was_stuck_and_became_somebody_elses_is_left_alone() -> None:
    machine = machine_in(State.STUCK)
    assert machine.receive(Found(ours=False), 0.5) is None
    assert machine.receive(TimerExpired(), 1) is None
    assert (machine.state, machine.deadline) == (State.ABSENT, None)


# Events cut the wait short, and flapping is capped.


@pytest.mark.parametrize("state", [State.WAITING, State.FAILED])
def test_a_hint_cancels_the_wait(state: State) -> None:
    machine = machine_in(state)
    attempts = machine.attempts
    assert machine.receive(Hint(), 0.1) is Command.CONNECT
    assert (machine.deadline, machine.attempts) == (None, attempts + 1)


def flap(machine: Machine, now: float) -> float:
    """Lose the connection and let it come back; say when it was back."""
    if machine.receive(Lost(), now) is None:
        assert machine.state is State.WAITING
        assert machine.deadline is not None
        now = machine.deadline
        assert machine.receive(TimerExpired(), now) is Command.CONNECT
    machine.receive(OURS, now)
    return now


def test_flapping_is_served_60_times_at_once_and_then_once_a_second() -> None:
    machine, now = machine_in(State.CONNECTED), 0.0
    for _ in range(60):
        now = flap(machine, now)
    assert now == 0
    for _ in range(100):
        now = flap(machine, now)
    assert now == 100
    assert (machine.state, machine.reconnects) == (State.CONNECTED, 160)


def test_hints_without_end_start_60_attempts_and_then_one_a_second() -> None:
    machine, attempts = machine_in(State.FAILED), []
    for step in range(100_000):
        now = step / 1000
        due = machine.deadline is not None and machine.deadline <= now
        if machine.receive(TimerExpired() if due else Hint(), now):
            attempts.append(now)
            machine.receive(ConnectRefused(), now)
    assert len(attempts) <= 60 + 100
    assert len([now for now in attempts if now >= 1]) == pytest.approx(99, abs=2)
    assert max(later - now for now, later in pairwise(attempts)) < 1.01


def test_a_hint_never_makes_the_wait_longer() -> None:
    machine = machine_in(State.CONNECTED, jitter=0)
    for _ in range(59):
        flap(machine, 0)
    assert machine.receive(Lost(), 0) is Command.CONNECT
    machine.receive(ConnectFailed(), 0)
    assert machine.receive(Hint(), 0.125) is None
    assert (machine.state, machine.deadline) == (State.WAITING, 0.5)


def test_an_allowance_that_was_spent_comes_back() -> None:
    machine, now = machine_in(State.CONNECTED), 0.0
    for _ in range(60):
        now = flap(machine, now)
    assert [flap(machine, 3600) for _ in range(60)] == [3600] * 60


def test_a_timer_that_is_a_little_early_is_believed() -> None:
    machine = machine_in(State.WAITING)
    assert machine.receive(TimerExpired(), 0.9) is Command.CONNECT
