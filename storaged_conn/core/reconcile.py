# SPDX-License-Identifier: LGPL-2.1-or-later
"""From what was seen to the event that it means."""

from storaged_conn.core.machine import (
    IN_FLIGHT,
    UP,
    Event,
    Found,
    Hint,
    Lost,
    Recovered,
    Stalled,
    State,
)
from storaged_conn.core.model import Absent, Observation, Present


def reconcile(state: State, observed: Observation, *, hint: bool) -> Event | None:
    """Say what an observation means for a connection in this state.

    Args:
        state: where the connection stands.
        observed: what the kernel has; None is unknown and never means anything.
        hint: the look was caused by something that may make an attempt succeed.
    """
    if state in IN_FLIGHT:
        return None  # the operation's own answer decides
    match observed:
        case Present(responsive=False, ours=ours) if state in UP:
            return Stalled(ours)
        case Present(ours=ours) if state is State.UNRESPONSIVE:
            return Recovered(ours)
        case Present(ours=ours):
            return Found(ours)
        case Absent() if state in UP or state is State.STUCK:
            return Lost()
    return Hint() if hint else None
