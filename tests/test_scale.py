# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many connections, correct; how fast that is, tests/bench measures."""

import asyncio
from pathlib import Path

import pytest

from storaged_conn.front.turns import MAX_WAITING
from tests.caller import Caller, serving

pytestmark = pytest.mark.bus

MANY = 500


async def all_connected(caller: Caller, cids: set[str]) -> None:
    """Wait for each, as many at a time as one caller may."""
    left = iter(cids)

    async def wait() -> None:
        for cid in left:
            assert await caller.wait_for(cid, "connected") == "connected"

    await asyncio.gather(*(wait() for _ in range(MAX_WAITING // 2)))


async def test_many_connections_are_kept_through_a_restart(tmp_path: Path) -> None:
    cids = {f"connection {number}" for number in range(MANY)}
    async with serving(tmp_path, "--log-level", "warning") as service:
        left = iter(cids)

        async def manage() -> None:
            for cid in left:
                await service.caller.manage(f"simulated:{cid}", cid, latency_ms=20)

        await asyncio.gather(*(manage() for _ in range(MAX_WAITING // 2)))
        for end in (service.daemon.stop, service.daemon.kill):
            await all_connected(service.caller, cids)
            listed = await service.caller.listed()
            assert set(listed) == cids
            assert all(one["connected"] and one["managed"] for one in listed.values())
            assert set(await service.caller.managed()) == cids
            await end()
            await service.daemon.start()
        await all_connected(service.caller, cids)

        gone = sorted(cids)[:MAX_WAITING]
        await asyncio.gather(*map(service.caller.unmanage, gone))
        assert set(await service.caller.managed()) == cids - set(gone)
