# SPDX-License-Identifier: LGPL-2.1-or-later
"""What much at once costs, and what nothing at all costs, in a network of namespaces.

Needs root.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles
from typing import Final, NamedTuple

from storaged_conn.core.backoff import BURST, REFILL
from storaged_conn.names import SERVICE
from storaged_conn.system.servers import AT_ONCE
from tests.bench.peer import LIST, build_peer
from tests.bench.table import Row, print_table
from tests.cost import idle, resident, system_calls
from tests.netns import INTERFACE, Network, Server, address, network
from tests.tape import Inside, all_connected, behind, manage_all, most_at_once

PORT: Final = 2049
URI: Final = f"simulated://{address()}:{PORT}"

MANY: Final = 500
LATENCY: Final = 0.1
"""Connections to one server, and the seconds that each takes to be made."""

CHANGES: Final = 100_000
LISTED: Final = 1000
"""Route changes, and the connections in each List meanwhile."""

FLAPPING: Final = 20.0
PERIOD: Final = 0.1
"""Seconds, in all and of each flap."""

SERVERS: Final = 50
IDLE: Final = 60.0
"""Servers with a connection each, and seconds in which nothing happens."""

QUIET: Final = "[Audit]\nIntervalSec=0\n"


class Stage(NamedTuple):
    """A network, its server, and the service."""

    net: Network
    server: Server
    inside: Inside


async def main() -> None:
    """Measure and print."""
    if os.geteuid() != 0:
        print("\nstorms: skipped, only root can make network namespaces")
        return
    print_table("Much at once", [*await _stampede(), *await _burst(), *await _flapping()])
    print_table(f"Idle for {IDLE:.0f} s", await _nothing())


@asynccontextmanager
async def _stage() -> AsyncIterator[Stage]:
    """Keep it in a mount namespace, so that it does not see what others mount."""
    with network() as net, tempfile.TemporaryDirectory(prefix="storaged-bench-") as name:
        prefix = ("unshare", "--mount")
        async with (
            Server(net.servers[0], PORT) as server,
            behind(net, Path(name), configuration=QUIET, prefix=prefix) as inside,
        ):
            yield Stage(net, server, inside)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _stampede() -> list[Row]:
    """Have a server come back that many wait for."""
    uris = {f"id {number}": f"{URI}/{number}" for number in range(MANY)}
    async with _stage() as on:
        await on.server.kill()
        await manage_all(on.inside.caller, uris, latency_ms=int(LATENCY * 1000))
        await on.inside.caller.until(f"id {MANY - 1}", State="waiting")
        before = on.server.count("accepted")
        began = await on.server.start()
        await all_connected(on.inside.caller, uris)
        took = _now() - began
        asked = on.server.count("accepted") - before
        found = await on.inside.caller.managed()
    ends = [one["StateSince"] / 1e6 for one in found.values()]
    return [
        Row(f"{MANY} wait for a server, its return until all are connected", [took], "s"),
        Row("… of which made at the same time", [most_at_once(ends, LATENCY)], "", f"≤ {AT_ONCE}"),
        Row("… connections to ask whether it answers", [asked], "", "1"),
    ]


async def _burst() -> list[Row]:
    """Flood the service with changes of routes."""
    uris = {f"id {number}": f"{URI}/{number}" for number in range(LISTED)}
    async with _stage() as on:
        await manage_all(on.inside.caller, uris)
        await all_connected(on.inside.caller, uris)
        with build_peer(on.inside.address) as peer:
            alone = await peer.time(SERVICE, LIST, LISTED, 50)
            before = resident(on.inside.daemon.pid)
            flooding = asyncio.create_task(asyncio.to_thread(on.net.client.flood, CHANGES))
            meanwhile: list[float] = []
            began = _now()
            while not flooding.done():
                meanwhile += await peer.time(SERVICE, LIST, LISTED, 10)
            took = _now() - began
            await flooding
        await idle(on.inside.daemon.pid)
        grown = resident(on.inside.daemon.pid) - before
    last = quantiles(meanwhile, n=20, method="inclusive")[-1]
    return [
        Row(f"List of {LISTED:,}", alone, "ms"),
        Row(f"… while {CHANGES:,} routes change, in {took:.1f} s", meanwhile, "ms"),
        Row("… 95th percentile", [last], "ms", "< 100 ms"),
        Row("… memory more than before", [grown], "MiB", "< 10 MiB"),
    ]


async def _flapping() -> list[Row]:
    """Let the client's own link flap."""
    flaps = int(FLAPPING / PERIOD)
    async with _stage() as on:
        await on.inside.caller.manage(f"{URI}/x", "x")
        await on.inside.caller.until("x", State="connected")
        lines = len(on.inside.daemon.log.splitlines())
        began = _now()
        for number in range(2 * flaps):
            await asyncio.sleep(max(0, began + number * PERIOD / 2 - _now()))
            on.net.client.link(up=number % 2 == 1)
        ended = _now()
        found = await on.inside.caller.until("x", State="connected")
        back = _now() - ended
        lines = len(on.inside.daemon.log.splitlines()) - lines
        asked = on.server.count("accepted")
    capped = BURST + FLAPPING * REFILL
    return [
        Row(f"attempts at {flaps} flaps, 10 a second", [found["Attempts"]], "", f"≈ {capped:.0f}"),
        Row("… connections that the server saw", [asked]),
        Row("… lines in the log", [lines]),
        Row("… the last one until connected", [back], "s"),
    ]


async def _nothing() -> list[Row]:
    """Count the system calls of who has nothing to do."""
    addresses = [address(number + 1) for number in range(SERVERS)]
    async with _stage() as on:
        on.net.servers[0].ip(*(f"address add {one}/24 dev {INTERFACE}" for one in addresses))
        uris = {one: f"simulated://{one}:{PORT}/x" for one in addresses}
        await manage_all(on.inside.caller, uris)
        await all_connected(on.inside.caller, uris)
        await idle(on.inside.daemon.pid)
        calls = await system_calls(on.inside.daemon.pid, IDLE)
    figure = f"system calls, with {SERVERS} connections to {SERVERS} servers"
    return [Row(figure, [sum(calls.values())], "", "0")]
