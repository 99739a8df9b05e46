# SPDX-License-Identifier: LGPL-2.1-or-later
"""What 10,000 simulated connections cost: time to come up, memory, and calls beside them."""

import re
from pathlib import Path
from time import monotonic
from typing import Final

from storaged_conn.names import SERVICE
from tests.bench.peer import LIST, Peer, build_peer
from tests.bench.service import AT_ONCE, Client, stage
from tests.bench.table import Row, print_table
from tests.live import Daemon

COUNT: Final = 10_000
RESTARTS: Final = 5
CALLS: Final = 100


async def main() -> None:
    """Measure and print."""
    async with stage("--enable-simulated") as on:
        with build_peer(on.address) as peer:
            rows = [await _fill(on.ours)]
            rows += await _restart(on.daemon, peer)
            listing = await peer.time(SERVICE, LIST, COUNT, CALLS)
            rows.append(Row(f"List of {COUNT:,}", listing, "ms", "< 1000 ms"))
            rows += await _change(on.ours)
        rows.append(Row("resident at the end", [_memory(on.daemon.pid, "Rss")], "MiB"))
    print_table(f"{COUNT:,} simulated connections", rows)


async def _fill(ours: Client) -> Row:
    began = monotonic()
    await ours.fill(range(COUNT))
    return Row(f"Manage {COUNT:,}, {AT_ONCE} at once", [monotonic() - began], "s")


async def _restart(daemon: Daemon, peer: Peer) -> list[Row]:
    """Start it again and again with what is in its store."""
    runs = [await _run_once(daemon, peer) for _ in range(RESTARTS)]
    named, published, connected, resident, proportional = zip(*runs, strict=True)
    return [
        Row("start until the name is there", named, "s"),
        Row("start until all are published", published, "s"),
        Row("start until all are connected", connected, "s", "< 5 s"),
        Row("resident then", resident, "MiB", "< 150 MiB"),
        Row("proportional share of it", proportional, "MiB"),
    ]


async def _run_once(daemon: Daemon, peer: Peer) -> tuple[float, ...]:
    """Start it.

    Returns:
        Seconds until it has its name, all objects, and all connected; then MiB of memory, without
        and with shared pages divided by those who share them.
    """
    await daemon.stop()
    async with peer.watch(SERVICE, COUNT) as watch:
        began = monotonic()
        await daemon.start()
        times = [moment - began for moment in await watch.times()]
    return (*times, _memory(daemon.pid, "Rss"), _memory(daemon.pid, "Pss"))


async def _change(ours: Client) -> list[Row]:
    """Manage and unmanage one more, again and again."""
    manage: list[float] = []
    unmanage: list[float] = []
    for number in range(CALLS):
        cid = f"more-{number}"
        began = monotonic()
        await ours.manage(f"simulated:{cid}", cid)
        between = monotonic()
        await ours.unmanage(cid)
        manage.append((between - began) * 1000)
        unmanage.append((monotonic() - between) * 1000)
    return [
        Row("Manage one more", manage, "ms", "< 5 ms"),
        Row("Unmanage it", unmanage, "ms", "< 5 ms"),
    ]


def _memory(pid: int, what: str) -> float:
    """Give Rss or Pss in MiB. Source: proc(5), /proc/PID/smaps_rollup."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(rf"^{what}: +(\d+) kB$", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1]) / 1024
