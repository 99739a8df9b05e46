# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the network does to connections: seen at once, whatever it is, and repaired at once.

How soon that is, tests/bench/network.py measures; here only what would be learnt by a timer alone
comes too late.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns import CLIENT, INTERFACE, Network, Server, address, address_6, needs_root, network
from tests.tape import Inside, behind

pytestmark = [pytest.mark.root, pytest.mark.bus, needs_root]

PORT = 2049
URI = f"simulated://{address()}:{PORT}/x"
SOON = 2.5
"""Seconds: the keepalive alone would take 3 at least, and a look without an event 15."""


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture
async def server(net: Network) -> AsyncIterator[Server]:
    async with Server(net.servers[0], PORT) as running:
        yield running


@pytest.fixture
async def inside(net: Network, server: Server, tmp_path: Path) -> AsyncIterator[Inside]:
    """The service, with a connection `x` that is up."""
    async with behind(net, tmp_path) as service:
        await service.caller.manage(URI, "x")
        await service.caller.until("x", State="connected")
        yield service


def now() -> float:
    return asyncio.get_running_loop().time()


async def soon(service: Inside, cid: str, **wanted: object) -> dict[str, Any]:
    """Return a connection's properties when they are as wanted, which must not take long."""
    began = now()
    found = await service.caller.until(cid, **wanted)
    assert now() - began < SOON
    return found


async def test_a_link_that_goes_down_is_a_loss_and_its_return_an_attempt(
    net: Network, inside: Inside
) -> None:
    net.client.link(up=False)
    found = await soon(inside, "x", State="waiting", StateReason="network-unreachable")
    assert found["LastErrorName"] == "org.storage.Connection.Error.NoNetwork"
    assert found["NextAttempt"]
    net.client.link(up=True)
    found = await soon(inside, "x", State="connected", StateReason="")
    assert (found["Reconnects"], found["NextAttempt"]) == (1, 0)


async def test_a_cable_that_is_pulled_is_a_loss_too(net: Network, inside: Inside) -> None:
    net.switch.link("client", up=False)
    await soon(inside, "x", State="waiting", StateReason="network-unreachable")
    net.switch.link("client", up=True)
    await soon(inside, "x", State="connected")


async def test_an_address_that_goes_is_a_loss_and_its_return_an_attempt(
    net: Network, inside: Inside
) -> None:
    net.client.ip(f"address del 192.0.2.1/24 dev {INTERFACE}")
    await soon(inside, "x", State="waiting", StateReason="network-unreachable")
    net.client.ip(f"address add 192.0.2.1/24 dev {INTERFACE}")
    await soon(inside, "x", State="connected")


async def test_a_route_without_an_address_waits_for_one(net: Network, inside: Inside) -> None:
    net.client.ip(f"address del 192.0.2.1/24 dev {INTERFACE}")
    await soon(inside, "x", State="waiting", StateReason="network-unreachable")
    net.client.ip(f"route add {address()} dev {INTERFACE}")
    await soon(inside, "x", State="waiting", StateReason="no-address")
    net.client.ip(f"address add 192.0.2.1/24 dev {INTERFACE}")
    await soon(inside, "x", State="connected")


async def test_a_route_that_goes_is_a_loss_and_its_return_an_attempt(
    net: Network, inside: Inside
) -> None:
    far = "198.51.100.1"  # RFC 5737, TEST-NET-2
    net.servers[0].ip(f"address add {far}/32 dev lo")
    await inside.caller.told("x")
    began = now()
    await inside.caller.manage(f"simulated://{far}:{PORT}/far", "far")
    await soon(inside, "far", State="waiting", StateReason="network-unreachable")
    for _ in range(2):
        net.client.ip(f"route add 198.51.100.0/24 via {address()}")
        await soon(inside, "far", State="connected")
        net.client.ip("route del 198.51.100.0/24")
        await soon(inside, "far", State="waiting", StateReason="network-unreachable")
    assert inside.tape.states("x", began) == []


async def test_another_way_to_the_server_is_no_loss(
    net: Network, server: Server, inside: Inside
) -> None:
    await inside.caller.told("x")
    began = now()
    net.client.ip(
        f"address add 192.0.2.2/24 dev {INTERFACE}",
        f"route add {address()} dev {INTERFACE} src 192.0.2.2",
    )
    seen = await server.happens("accepted", began)
    assert seen.at - began < SOON
    assert "192.0.2.2:" in seen.peer
    await server.happens("ended", began)
    assert inside.tape.states("x", began) == []


async def test_a_server_that_is_killed_is_a_loss_and_its_return_an_attempt(
    server: Server, inside: Inside
) -> None:
    for _ in range(2):
        await server.kill()
        await soon(inside, "x", State="waiting", StateReason="server-refused")
        await server.start()
        await soon(inside, "x", State="connected")


async def test_a_server_that_falls_silent_is_a_loss(net: Network, inside: Inside) -> None:
    net.drop()
    began = now()
    await inside.caller.until("x", State="waiting", StateReason="server-unreachable")
    assert now() - began > SOON
    net.deliver()
    await soon(inside, "x", State="connected")


async def test_a_server_that_is_heard_of_is_tried(net: Network, inside: Inside) -> None:
    net.servers[0].link(up=False)
    await inside.caller.until("x", State="waiting", StateReason="server-unreachable")
    net.client.run("ip", "neighbour", "flush", "dev", INTERFACE)  # as time does
    net.servers[0].link(up=True)
    net.servers[0].speak(CLIENT)
    await soon(inside, "x", State="connected")


async def test_the_reason_is_the_one_that_holds_now(
    net: Network, server: Server, inside: Inside
) -> None:
    net.client.link(up=False)
    await soon(inside, "x", State="waiting", StateReason="network-unreachable")
    await server.kill()
    net.client.link(up=True)
    await soon(inside, "x", State="waiting", StateReason="server-refused")
    net.drop()
    await soon(inside, "x", State="waiting", StateReason="server-unreachable")


async def test_what_the_kernel_keeps_is_unresponsive_while_its_server_is_silent(
    net: Network, inside: Inside
) -> None:
    await inside.caller.manage(URI, "kept", stall=True)
    attempts = (await inside.caller.until("kept", State="connected"))["Attempts"]
    net.client.link(up=False)
    await soon(inside, "kept", State="unresponsive", StateReason="unresponsive")
    net.client.link(up=True)
    found = await soon(inside, "kept", State="connected")
    assert found["Attempts"] == attempts


async def test_a_server_that_closes_what_is_idle_is_no_loss(net: Network, tmp_path: Path) -> None:
    async with (
        Server(net.servers[0], PORT, close_after=1.2) as server,
        behind(net, tmp_path) as service,
    ):
        await service.caller.manage(URI, "x")
        await service.caller.until("x", State="connected")
        await service.caller.told("x")
        told = len(service.tape.entries)
        ended = await server.happens("ended", 0)
        for _ in range(3):
            again = await server.happens("accepted", ended.at)
            assert again.at - ended.at < 1
            ended = await server.happens("ended", again.at)
        assert service.tape.entries[told:] == []
        assert (await service.caller.properties("x"))["Attempts"] == 1


async def test_an_ipv6_address_is_waited_for_until_it_can_be_used(
    net: Network, server: Server, inside: Inside
) -> None:
    net.client.ip(f"address del fd00::1/64 dev {INTERFACE}")
    await inside.caller.manage(f"simulated://[{address_6()}]:{PORT}/six", "six")
    await soon(inside, "six", State="waiting", StateReason="network-unreachable")
    settled = asyncio.create_task(net.client.settled("fd00::1"))
    await asyncio.sleep(0)  # it listens from here on
    began = now()
    net.client.ip(f"address add fd00::1/64 dev {INTERFACE}")
    await soon(inside, "six", State="waiting", StateReason="no-address")
    usable = await settled
    await soon(inside, "six", State="connected")
    seen = await server.happens("accepted", began)
    assert seen.peer.startswith("fd00::1:")
    assert seen.at > usable
