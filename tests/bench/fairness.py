# SPDX-License-Identifier: LGPL-2.1-or-later
"""What root waits for List while nobody does its worst: floods, crowds, and does not read."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from time import monotonic
from typing import Final

from tests.bench.latency import REFERENCE, reference
from tests.bench.peer import build_peer
from tests.bench.service import Stage, stage
from tests.bench.table import Row, print_table
from tests.broker import broker_bus
from tests.front.test_hostile import Hostile, hostile
from tests.live import private_bus

CONNECTIONS: Final = 100
GOAL: Final = "< 100 ms"

Listed = Callable[[], Awaitable[object]]

CROWD: Final = ("ask", 256, 50)

CASES: Final = {
    "10,000 calls without replies": ("flood", 10_000, 1),
    "10,000 calls of List": ("ask", 10_000, 1),
    "10,000 calls of Manage": ("beg", 10_000, 1),
    "256 calls of List on each of 50 connections": CROWD,
    "8 connections that never read": ("deaf", 5000, 1),
}
"""What is done, how often, and by how many processes; see tests/front/hostile.py."""

BUSES: Final = {"dbus-daemon": private_bus, "dbus-broker": broker_bus}


async def main() -> None:
    """Measure and print."""
    for name, bus in BUSES.items():
        async with stage("--enable-simulated", bus=bus) as on:
            await on.ours.fill(range(CONNECTIONS))
            rows = [Row("nothing", await _times(on.ours.listed, asyncio.sleep(1)), "ms")]
            for case, act in CASES.items():
                rows.append(Row(case, await _beside(on, act, on.ours.listed), "ms", GOAL))
            rows.append(Row("the same 50, and root calls C", await _reference(on), "ms"))
        print_table(f"List of {CONNECTIONS} for root on {name}, while nobody makes", rows)


async def _reference(on: Stage) -> list[float]:
    """Call another service, which nobody floods, while ours is: what the bus itself takes."""
    with build_peer(on.address) as peer:
        async with reference(peer, on.ours, CONNECTIONS):
            return await _beside(on, CROWD, lambda: on.ours.listed(REFERENCE))


async def _beside(on: Stage, act: tuple[str, int, int], listed: Listed) -> list[float]:
    what, number, clients = act
    async with AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(hostile(on.address, what, number))
            for _ in range(clients)
        ]
        return await _times(listed, _all(crowd))


async def _all(crowd: Sequence[Hostile]) -> None:
    await asyncio.gather(*(client.act() for client in crowd))


async def _times(listed: Listed, acts: Coroutine[None, None, None]) -> list[float]:
    """Call List again and again until something has ended; gives the ms of each call."""
    acting = asyncio.create_task(acts)
    times = []
    while not acting.done():
        began = monotonic()
        await listed()
        times.append((monotonic() - began) * 1000)
        await asyncio.wait({acting}, timeout=0.005)
    await acting
    return times
