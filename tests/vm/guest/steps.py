# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a test of any kind of storage does with the service."""

from typing import Any

from tests.caller import Caller
from tests.shell import show as say


async def leave(caller: Caller) -> None:
    """Unmanage everything, and return when it is disconnected."""
    managed = await caller.managed()
    for cid in managed:
        await caller.unmanage(cid)
    for uri in {one["Uri"] for one in managed.values()}:
        await caller.gone(uri)


async def connected(caller: Caller, cid: str) -> dict[str, Any]:
    return await caller.until(cid, State="connected")


async def since(caller: Caller, cid: str, begun: float, state: str) -> float:
    """Give the seconds after which a connection came to a state."""
    found = await caller.until(cid, State=state)
    seconds = float(found["StateSince"]) / 1e6 - begun
    say(f"{cid}: {state} after {seconds:.2f} s")
    return seconds
