# SPDX-License-Identifier: LGPL-2.1-or-later
"""Much at once, and nothing at all: neither may cost more than it must."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic, process_time

import pytest

from storaged_conn.config import Keepalive
from storaged_conn.core.backoff import BURST, REFILL
from storaged_conn.sources.routes import FIRST_PAUSE, RouteSource
from storaged_conn.system.routes import Routes
from storaged_conn.system.servers import AT_ONCE, Servers
from tests.cost import idle, resident, system_calls
from tests.live import DEADLINE
from tests.netns import INTERFACE, Namespace, Network, Server, address, needs_root, network
from tests.tape import all_connected, behind, manage_all, most_at_once

pytestmark = [pytest.mark.root, pytest.mark.bus, needs_root]

PORT = 2049
URI = f"simulated://{address()}:{PORT}"

NEVER = "[Audit]\nIntervalSec=0\n"


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as made:
        yield made


async def test_a_server_that_comes_back_is_not_stampeded(net: Network, tmp_path: Path) -> None:
    latency = 0.1
    uris = {f"id {number}": f"{URI}/{number}" for number in range(500)}
    server = Server(net.servers[0], PORT)
    async with behind(net, tmp_path, "--log-level", "warning") as inside:
        await manage_all(inside.caller, uris, latency_ms=int(latency * 1000))
        await inside.caller.until("id 499", State="waiting", StateReason="server-refused")
        async with server:
            await all_connected(inside.caller, set(uris))
            found = await inside.caller.managed()
            assert server.count("accepted") == 1  # of all that wait, one asks whether it answers
    ends = [one["StateSince"] / 1e6 for one in found.values()]
    assert most_at_once(ends, latency) <= AT_ONCE
    assert max(ends) - min(ends) > latency * (len(ends) / AT_ONCE - 1) * 0.9


async def test_a_burst_of_route_changes_starves_nobody(net: Network, tmp_path: Path) -> None:
    async with (
        Server(net.servers[0], PORT) as server,
        behind(net, tmp_path, "--log-level", "warning") as inside,
    ):
        uris = {f"id {number}": f"{URI}/{number}" for number in range(50)}
        await manage_all(inside.caller, uris)
        await all_connected(inside.caller, set(uris))
        before = resident(inside.daemon.pid)
        flooding = asyncio.create_task(asyncio.to_thread(net.client.flood, 20_000))
        times = []
        while not flooding.done():
            began = monotonic()
            assert len(await inside.caller.listed()) == len(uris)
            times.append(monotonic() - began)
        await flooding
        assert sorted(times)[len(times) // 2] < 0.1
        assert resident(inside.daemon.pid) - before < 10
        await server.kill()  # and it still hears what matters
        await inside.caller.until("id 7", State="waiting", StateReason="server-refused")


async def test_a_link_that_flaps_does_not_make_a_storm(net: Network, tmp_path: Path) -> None:
    flaps, pause = 60, 0.05
    async with Server(net.servers[0], PORT) as server, behind(net, tmp_path) as inside:
        await inside.caller.manage(f"{URI}/x", "x")
        await inside.caller.until("x", State="connected")
        began = monotonic()
        for up in [False, True] * flaps:
            net.client.link(up=up)
            await asyncio.sleep(pause)  # this is the storm
        found = await inside.caller.until("x", State="connected")
        lasted = monotonic() - began
        assert lasted < 2 * flaps * pause + 5
        capped = BURST + lasted * REFILL
        assert found["Attempts"] <= capped + flaps / 2
        assert server.count("accepted") <= capped + flaps / 2
        assert len(inside.daemon.log.splitlines()) < 3 * flaps


async def test_what_an_overflow_swallowed_is_found_out(net: Network, tmp_path: Path) -> None:
    async with (
        Server(net.servers[0], PORT),
        behind(net, tmp_path, "--log-level", "warning") as inside,
    ):
        await inside.caller.manage(f"{URI}/x", "x")
        await inside.caller.until("x", State="connected")
        net.client.link(up=False)
        await inside.caller.until("x", State="waiting", StateReason="network-unreachable")
        os.kill(inside.daemon.pid, signal.SIGSTOP)
        try:
            net.client.flood(50_000)
            assert dropped(net.client)
            net.client.link(up=True)
        finally:
            os.kill(inside.daemon.pid, signal.SIGCONT)
        began = monotonic()
        await inside.caller.until("x", State="connected")
        assert monotonic() - began < 5  # without the event it would look after 15
        await idle(inside.daemon.pid)


def dropped(namespace: Namespace) -> int:
    """Count the messages that found no room. Source: net/netlink/af_netlink.c, netlink_seq_show."""
    _, *rows = namespace.run("cat", "/proc/net/netlink").splitlines()
    return sum(int(row.split()[8]) for row in rows)


class Rechecked(Servers):
    """Counts how often all ways are looked at."""

    def __init__(self, routes: Routes) -> None:
        super().__init__(routes, Keepalive(), lambda _: pytest.fail("nothing is watched here"))
        self.rechecks = 0
        self.latest = 0.0
        self.news = asyncio.Event()

    def recheck(self) -> None:
        self.rechecks += 1
        self.latest = monotonic()
        self.news.set()


async def test_an_overflow_is_noticed_and_costs_no_more_than_the_messages(net: Network) -> None:
    routes, resyncs = Routes(), list[float]()
    servers = Rechecked(routes)
    source = RouteSource(servers, buffer=4096)
    with net.client.entered():
        source.start(lambda topic, *, hint: None, lambda: resyncs.append(monotonic()))
    with closing(routes), closing(source):
        began = monotonic()
        await asyncio.to_thread(net.client.flood, 20_000)
        net.client.link(up=False)
        changed = monotonic()
        async with asyncio.timeout(DEADLINE):
            while servers.latest < changed:
                servers.news.clear()
                await servers.news.wait()
        assert resyncs
        assert servers.rechecks < (monotonic() - began) / FIRST_PAUSE
        settled, used = servers.rechecks + len(resyncs), process_time()
        await asyncio.sleep(1)  # this is what is measured
        assert servers.rechecks + len(resyncs) <= settled + 5  # the link's last messages
        assert process_time() - used < 0.2


async def test_who_is_idle_does_nothing(net: Network, tmp_path: Path) -> None:
    more = [f"192.0.2.{100 + number}" for number in range(50)]
    net.servers[0].ip(*(f"address add {one}/24 dev {INTERFACE}" for one in more))
    uris = {one: f"simulated://{one}:{PORT}/x" for one in more}
    async with (
        Server(net.servers[0], PORT) as server,
        behind(net, tmp_path, configuration=NEVER, prefix=("unshare", "--mount")) as inside,
    ):
        await manage_all(inside.caller, uris)
        await all_connected(inside.caller, set(uris))
        await inside.daemon.notice("STATUS=50 connected")
        await idle(inside.daemon.pid)
        assert server.count("accepted") == len(uris)
        assert await system_calls(inside.daemon.pid, 10) == {}
        assert server.count("accepted") == len(uris)
