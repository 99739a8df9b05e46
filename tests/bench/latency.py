# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a call costs, beside a C service of the same shape, in turns and called from C."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from statistics import median
from typing import Any, Final

from storaged_conn.names import SERVICE
from tests.bench.peer import (
    GET_CONNECTION,
    GET_MANAGED_OBJECTS,
    LIST,
    Call,
    Peer,
    build_peer,
)
from tests.bench.service import Client, Listing, stage
from tests.bench.table import Row, print_table, ratios

REFERENCE: Final = "org.storage.Reference"
ROUNDS: Final = 11


async def main() -> None:
    """Measure and print."""
    async with stage("--enable-simulated") as on:
        with build_peer(on.address) as peer:
            await on.ours.fill(range(1000))
            async with reference(peer, on.ours, 1000):
                rows = await _compare(peer, GET_CONNECTION, 1, 300, ("", "≤ 3"))
                rows += await _compare(peer, LIST, 1000, 20, ("", "≤ 1"))
            await on.ours.fill(range(1000, 10_000))
            async with reference(peer, on.ours, 10_000):
                goals = ("< 50 ms", "")
                rows += await _compare(peer, GET_MANAGED_OBJECTS, 10_000, 3, goals)
    print_table("Latency beside C", rows)


@asynccontextmanager
async def reference(peer: Peer, ours: Client, count: int) -> AsyncIterator[None]:
    """Run a C service that lists the same as ours."""
    listed = await ours.listed()
    async with peer.serve(REFERENCE, count, _info(listed["c00000"])):
        if _shape(await ours.listed(REFERENCE)) != _shape(listed):
            raise RuntimeError("the two services do not list the same; adapt serve.c")
        yield


def _info(entry: Mapping[str, Any]) -> list[str]:
    """Write a connection's information as `peer serve` wants it."""
    found = entry["connectionInfo"].value.items()
    return [f"{key}={one.signature}:{one.value}" for key, one in found]


def _shape(listed: Listing) -> dict[str, list[tuple[str, str]]]:
    """Leave only names and types, and only what is managed."""
    shapes = {}
    for cid, entry in listed.items():
        if "/" in cid:
            continue
        pairs = [*entry.items(), *entry["connectionInfo"].value.items()]
        shapes[cid] = sorted((key, one.signature) for key, one in pairs)
    return shapes


async def _compare(
    peer: Peer, call: Call, entries: int, count: int, goals: tuple[str, str]
) -> list[Row]:
    """Call both services in turns.

    Args:
        count: calls in one turn, whose median is one value.
        goals: for ours, and for the ratio.
    """
    times: dict[str, list[float]] = {SERVICE: [], REFERENCE: []}
    for _ in range(ROUNDS):
        for name, medians in times.items():
            medians.append(median(await peer.time(name, call, entries, count)))
    name = f"{call.name} of {entries:,}" if entries > 1 else call.name
    return [
        Row(name, times[SERVICE], "ms", goals[0]),
        Row(f"{name}, C", times[REFERENCE], "ms"),
        Row(f"{name}, ours / C", ratios(times[SERVICE], times[REFERENCE]), "", goals[1]),
    ]
