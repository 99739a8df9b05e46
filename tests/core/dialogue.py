# SPDX-License-Identifier: LGPL-2.1-or-later
"""How tests talk to a machine: events go in, and what is asserted is everything that it knows."""

from typing import Final

from storaged_conn.core.machine import (
    Command,
    Connected,
    ConnectFailed,
    ConnectRefused,
    DisconnectFailed,
    Event,
    Found,
    Lost,
    Machine,
    Recovered,
    Stalled,
    State,
    Unwanted,
    Wanted,
)

OURS: Final = Connected(ours=True)
THEIRS: Final = Connected(ours=False)
FOUND: Final = Found(ours=True)
STALLED: Final = Stalled(ours=True)
RECOVERED: Final = Recovered(ours=True)

WAYS: Final[dict[State, tuple[Event, ...]]] = {
    State.ABSENT: (),
    State.CONNECTING: (Wanted(),),
    State.WITHDRAWING: (Wanted(), Unwanted()),
    State.CONNECTED: (Wanted(), OURS),
    State.UNRESPONSIVE: (Wanted(), OURS, STALLED),
    State.WAITING: (Wanted(), OURS, Lost(), ConnectFailed()),
    State.FAILED: (Wanted(), ConnectRefused()),
    State.DISCONNECTING: (Wanted(), OURS, Unwanted()),
    State.RETURNING: (Wanted(), OURS, Unwanted(), Wanted()),
    State.STUCK: (Wanted(), OURS, Unwanted(), DisconnectFailed()),
}
"""A way into every state."""


def tell(machine: Machine, event: Event, now: float = 0) -> Command | None:
    """Hand an event in as a caller does: what is wanted is wanted by the id `a`."""
    match event:
        case Wanted():
            return machine.hold("a", now)
        case Unwanted():
            return machine.release("a", now)
        case _:
            return machine.receive(event, now)


def machine_in(state: State, *, jitter: float = 1) -> Machine:
    """Make a machine and lead it into a state at 0 s."""
    machine = Machine(jitter)
    for event in WAYS[state]:
        tell(machine, event)
    assert machine.state is state
    return machine
