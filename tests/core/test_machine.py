# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table: every state meets every event, and everything that a machine knows is compared."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import pytest

from storaged_conn.core import machine as module
from storaged_conn.core.backoff import Allowance
from storaged_conn.core.machine import (
    ANSWERS,
    TRANSITIONS,
    Command,
    ConnectFailed,
    ConnectRefused,
    Disconnected,
    DisconnectFailed,
    Event,
    Hint,
    Lost,
    Machine,
    State,
    TimerExpired,
    Unwanted,
    Wanted,
    WrongStateError,
)
from tests.core.dialogue import FOUND, OURS, RECOVERED, STALLED, machine_in, tell

NOW: Final = 1000.0
EVENTS: Final[tuple[Event, ...]] = (
    *(Wanted(), Unwanted(), OURS, ConnectFailed(), ConnectRefused(), Disconnected()),
    *(DisconnectFailed(), FOUND, Lost(), STALLED, RECOVERED, Hint(), TimerExpired()),
)
PAIRS: Final = [(state, event) for state in State for event in EVENTS]
STAYS: Final = [pair for pair in PAIRS if TRANSITIONS[pair[0]].get(type(pair[1])) is pair[0]]
WRONG: Final = [pair for pair in PAIRS if type(pair[1]) not in TRANSITIONS[pair[0]]]


@dataclass(frozen=True)
class Move:
    """What an event changes in a machine, and what is to be started."""

    command: Command | None
    changes: Mapping[str, Any]


def to(state: State, command: Command | None = None, **changes: Any) -> Move:
    return Move(command, {"state": state, "deadline": None, **changes})


GONE: Final = to(State.ABSENT, holders=set(), _failures=0, _lost=False)
ENDED: Final = to(State.DISCONNECTING, Command.DISCONNECT, holders=set())
TRIED: Final = to(State.CONNECTING, Command.CONNECT, attempts=2, _allowance=Allowance(59, NOW))
LOST: Final = replace(TRIED, changes={**TRIED.changes, "_lost": True})
AGAIN: Final = to(State.CONNECTING, Command.CONNECT, attempts=2)

MOVES: Final[Mapping[State, Mapping[Event, Move]]] = {
    State.ABSENT: {
        Wanted(): to(State.CONNECTING, Command.CONNECT, holders={"a"}, attempts=1),
    },
    State.CONNECTING: {
        Unwanted(): to(State.WITHDRAWING, holders=set()),
        OURS: to(State.CONNECTED, ours=True),
        ConnectFailed(): to(State.WAITING, deadline=NOW + 1, _failures=1),
        ConnectRefused(): to(State.FAILED, deadline=NOW + 600, _failures=1),
        ConnectRefused(early=True): to(State.FAILED, deadline=NOW + 1, _failures=1),
    },
    State.WITHDRAWING: {
        Wanted(): to(State.CONNECTING, holders={"a"}),
        OURS: to(State.DISCONNECTING, Command.DISCONNECT, ours=True),
        ConnectFailed(): to(State.ABSENT, _failures=1),
        ConnectRefused(): to(State.ABSENT, _failures=1),
    },
    State.CONNECTED: {
        Unwanted(): ENDED,
        Lost(): LOST,
        STALLED: to(State.UNRESPONSIVE),
    },
    State.UNRESPONSIVE: {
        Unwanted(): ENDED,
        Lost(): LOST,
        RECOVERED: to(State.CONNECTED),
    },
    State.WAITING: {
        Unwanted(): GONE,
        FOUND: to(State.CONNECTED, reconnects=1, _failures=0, _lost=False),
        Hint(): replace(TRIED, changes={**TRIED.changes, "attempts": 3}),
        TimerExpired(): replace(TRIED, changes={**TRIED.changes, "attempts": 3}),
    },
    State.FAILED: {
        Unwanted(): GONE,
        FOUND: to(State.CONNECTED, ours=True, _failures=0),
        Hint(): TRIED,
        TimerExpired(): TRIED,
    },
    State.DISCONNECTING: {
        Wanted(): to(State.RETURNING, holders={"a"}),
        Disconnected(): to(State.ABSENT),
        DisconnectFailed(): to(State.STUCK, deadline=NOW + 1, _failures=1),
    },
    State.RETURNING: {
        Unwanted(): to(State.DISCONNECTING, holders=set()),
        Disconnected(): AGAIN,
        DisconnectFailed(): to(State.CONNECTED, _failures=1),
    },
    State.STUCK: {
        Wanted(): to(State.CONNECTED, holders={"a"}, _failures=0),
        Lost(): to(State.ABSENT, _failures=0, _lost=True),
        TimerExpired(): to(State.DISCONNECTING, Command.DISCONNECT),
    },
}


@pytest.mark.parametrize(
    ("state", "event"), [(state, event) for state, row in MOVES.items() for event in row]
)
def test_an_event_that_moves_changes_this_and_nothing_else(state: State, event: Event) -> None:
    move, machine = MOVES[state][event], machine_in(state)
    expected = replace(deepcopy(machine), **move.changes)
    assert tell(machine, event, NOW) is move.command
    assert machine == expected
    assert machine.state is TRANSITIONS[state][type(event)]


def test_every_move_of_the_table_is_tested() -> None:
    tested = {(state, type(event)) for state, row in MOVES.items() for event in row}
    table = {(state, event) for state, row in TRANSITIONS.items() for event in row}
    assert tested == table - {(state, type(event)) for state, event in STAYS}


@pytest.mark.parametrize(("state", "event"), STAYS)
def test_an_event_that_stays_starts_nothing_and_changes_nothing(state: State, event: Event) -> None:
    machine = replace(machine_in(state), ours=True)
    expected = deepcopy(machine)
    assert tell(machine, event, NOW) is None
    assert machine == expected


@pytest.mark.parametrize(("state", "event"), WRONG)
def test_an_event_that_cannot_happen_is_an_error_and_changes_nothing(
    state: State, event: Event
) -> None:
    machine = machine_in(state)
    expected = deepcopy(machine)
    with pytest.raises(WrongStateError, match=f"^{type(event).__name__} in {state.name}$"):
        machine.receive(event, NOW)
    assert machine == expected


@pytest.mark.parametrize("state", [state for state in State if machine_in(state).holders])
def test_a_second_holder_comes_and_goes_without_a_trace(state: State) -> None:
    machine = machine_in(state)
    expected = deepcopy(machine)
    assert machine.hold("b", NOW) is None
    assert machine.hold("b", NOW) is None
    assert machine == replace(expected, holders={"a", "b"})
    assert machine.release("b", NOW) is None
    assert machine == expected


@pytest.mark.parametrize("state", State)
def test_who_does_not_hold_cannot_let_go(state: State) -> None:
    machine = machine_in(state)
    expected = deepcopy(machine)
    with pytest.raises(KeyError):
        machine.release("b", NOW)
    assert machine == expected


def test_every_state_has_a_row_and_every_event_a_place() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {type(event) for event in EVENTS} == set(get_args(Event))
    assert {event for row in TRANSITIONS.values() for event in row} == set(get_args(Event))


def test_what_is_seen_or_timed_may_come_in_any_state() -> None:
    anytime = set(get_args(Event)) - {Wanted, Unwanted, *ANSWERS}
    for row in TRANSITIONS.values():
        assert anytime <= set(row)


def listing() -> list[str]:
    """Print the moves of the table, a state's name before its first."""
    lines = []
    for state, row in TRANSITIONS.items():
        moves = [f"{event.__name__} → {new.name}" for event, new in row.items() if new != state]
        names = [state.name, *[""] * (len(moves) - 1)]
        lines += [f"    {name:13} {move}" for name, move in zip(names, moves, strict=True)]
    return lines


def test_the_listing_in_the_docstring_is_the_table() -> None:
    assert [line for line in (module.__doc__ or "").splitlines() if "→" in line] == listing()


def test_a_new_machine_is_absent_and_knows_nothing() -> None:
    nothing = Machine(
        jitter=0.5,
        state=State.ABSENT,
        holders=set(),
        ours=False,
        deadline=None,
        attempts=0,
        reconnects=0,
        _failures=0,
        _lost=False,
        _allowance=Allowance(60, 0),
    )
    assert Machine(0.5) == nothing
