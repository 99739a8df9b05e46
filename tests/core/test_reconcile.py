# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every state meets every observation."""

import pytest

from storaged_conn.core.machine import (
    IN_FLIGHT,
    UP,
    Found,
    Hint,
    Lost,
    Recovered,
    Stalled,
    State,
)
from storaged_conn.core.model import Absent, Observation, Present
from storaged_conn.core.reconcile import reconcile

OURS = Present("mount-34", ours=True)
THEIRS = Present("mount-35", ours=False)
STALLED = Present("mount-34", ours=True, responsive=False)
THEIRS_STALLED = Present("mount-35", ours=False, responsive=False)
SETTLED = sorted(set(State) - set(IN_FLIGHT), key=lambda state: state.value)


@pytest.mark.parametrize("state", IN_FLIGHT)
@pytest.mark.parametrize("observed", [OURS, STALLED, Absent(), None])
def test_while_an_operation_runs_only_its_answer_counts(
    state: State, observed: Observation
) -> None:
    assert reconcile(state, observed, hint=True) is None
    assert reconcile(state, observed, hint=False) is None


@pytest.mark.parametrize("state", SETTLED)
def test_unknown_is_not_gone(state: State) -> None:
    assert reconcile(state, None, hint=False) is None
    assert reconcile(state, None, hint=True) == Hint()


@pytest.mark.parametrize("state", SETTLED)
def test_what_is_there_is_found_or_has_recovered(state: State) -> None:
    event = Recovered if state is State.UNRESPONSIVE else Found
    for hint in (False, True):
        assert reconcile(state, OURS, hint=hint) == event(ours=True)
        assert reconcile(state, THEIRS, hint=hint) == event(ours=False)


@pytest.mark.parametrize("state", SETTLED)
def test_what_does_not_answer_has_stalled_where_it_was_up(state: State) -> None:
    event = Stalled if state in UP else Found
    for hint in (False, True):
        assert reconcile(state, STALLED, hint=hint) == event(ours=True)
        assert reconcile(state, THEIRS_STALLED, hint=hint) == event(ours=False)


@pytest.mark.parametrize("state", SETTLED)
def test_what_is_gone_is_lost_where_it_was_there(state: State) -> None:
    lost = state in {State.CONNECTED, State.UNRESPONSIVE, State.STUCK}
    assert reconcile(state, Absent(), hint=False) == (Lost() if lost else None)
    assert reconcile(state, Absent(), hint=True) == (Lost() if lost else Hint())
