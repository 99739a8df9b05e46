# SPDX-License-Identifier: LGPL-2.1-or-later
"""What root waits for List while nobody does its worst: floods, crowds, and does not read."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from time import monotonic
from typing import Final

from tests.bench.service import Client, stage
from tests.bench.table import Row, print_table
from tests.front.test_hostile import Hostile, hostile

CONNECTIONS: Final = 100
GOAL: Final = "< 100 ms"

CASES: Final = {
    "10,000 calls without replies": ("flood", 10_000, 1),
    "10,000 calls of List": ("ask", 10_000, 1),
    "10,000 calls of Manage": ("beg", 10_000, 1),
    "256 calls of List on each of 50 connections": ("ask", 256, 50),
    "8 connections that never read": ("deaf", 5000, 1),
}
"""What is done, how often, and by how many processes; see tests/front/hostile.py."""


async def main() -> None:
    """Measure and print."""
    async with stage("--enable-simulated") as on:
        await on.ours.fill(range(CONNECTIONS))
        rows = [Row("nothing", await _times(on.ours, asyncio.create_task(asyncio.sleep(1))), "ms")]
        for name, (what, number, clients) in CASES.items():
            async with AsyncExitStack() as stack:
                crowd = [
                    await stack.enter_async_context(hostile(on.address, what, number))
                    for _ in range(clients)
                ]
                acting = asyncio.ensure_future(_all(crowd))
                rows.append(Row(name, await _times(on.ours, acting), "ms", GOAL))
    print_table(f"List of {CONNECTIONS} for root, while nobody makes", rows)


async def _all(crowd: Sequence[Hostile]) -> None:
    await asyncio.gather(*(client.act() for client in crowd))


async def _times(ours: Client, acting: "asyncio.Task[None]") -> list[float]:
    """Call List again and again until something has ended; gives the ms of each call."""
    times = []
    while not acting.done():
        began = monotonic()
        await ours.listed()
        times.append((monotonic() - began) * 1000)
        await asyncio.wait({acting}, timeout=0.005)
    await acting
    return times
