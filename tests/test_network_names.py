# SPDX-License-Identifier: LGPL-2.1-or-later
"""Servers by name: resolved anew at every attempt, and never a reason to let go of what works."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from time import monotonic

import pytest

from tests.netns import Network, Server, address, address_6, needs_root, network
from tests.tape import Inside, behind

pytestmark = [pytest.mark.root, pytest.mark.bus, needs_root]

PORT = 2049
HOST = "storage.test"  # RFC 6761 section 6.2: nobody's
URI = f"simulated://{HOST}:{PORT}/x"

BIND = 'for f in hosts resolv.conf nsswitch.conf; do mount --bind "$0/$f" /etc/$f; done; exec "$@"'
"""Gives a command its own files, written here while it runs."""

QUICKLY = "options timeout:1 attempts:1"


@pytest.fixture
def net() -> Iterator[Network]:
    with network(servers=2) as made:
        yield made


class Names:
    """What the service sees of names."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.prefix = ("unshare", "--mount", "sh", "-ec", BIND, str(directory))
        self._hosts = directory / "hosts"
        (directory / "resolv.conf").write_text(f"nameserver {address(1)}\n{QUICKLY}\n")
        (directory / "nsswitch.conf").write_text("hosts: files dns\n")
        self.lead_to()

    def lead_to(self, *addresses: str) -> None:
        """Let the name lead to these addresses, and for none to the name server."""
        self._hosts.write_text("".join(f"{one} {HOST}\n" for one in addresses))


@asynccontextmanager
async def serving(net: Network, directory: Path) -> AsyncIterator[tuple[Inside, Names]]:
    names = Names(directory / "etc")
    async with behind(net, directory, prefix=names.prefix) as inside:
        yield inside, names


@contextmanager
def silent_name_server(net: Network) -> Iterator[None]:
    """Have a name server that takes questions and never answers."""
    with net.servers[1].entered():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server:
        server.bind((address(1), 53))
        yield


async def test_a_name_that_cannot_be_resolved_is_waited_for(net: Network, tmp_path: Path) -> None:
    async with Server(net.servers[0], PORT), serving(net, tmp_path) as (inside, names):
        await inside.caller.manage(URI, "x")
        found = await inside.caller.until("x", State="waiting", StateReason="name-resolution")
        assert HOST in found["LastErrorMessage"]
        names.lead_to(address())
        await inside.caller.until("x", State="connected")


async def test_a_name_server_that_hangs_holds_up_nobody_else(net: Network, tmp_path: Path) -> None:
    async with Server(net.servers[0], PORT), serving(net, tmp_path) as (inside, names):
        with silent_name_server(net):
            await inside.caller.manage(URI, "x")
            began = monotonic()
            await inside.caller.manage(f"simulated://{address()}:{PORT}/y", "y")
            await inside.caller.until("y", State="connected")
            assert monotonic() - began < 1  # as long as the name server is waited for
            await inside.caller.until("x", State="waiting", StateReason="name-resolution")
            names.lead_to(address())
            await inside.caller.until("x", State="connected")


async def test_a_name_that_moves_is_followed_at_the_next_loss(net: Network, tmp_path: Path) -> None:
    async with (
        Server(net.servers[0], PORT) as old,
        Server(net.servers[1], PORT) as new,
        serving(net, tmp_path) as (inside, names),
    ):
        names.lead_to(address(0))
        await inside.caller.manage(URI, "x")
        await inside.caller.until("x", State="connected")
        names.lead_to(address(1))
        assert new.count("accepted") == 0
        began = await old.kill()
        await new.happens("accepted", began)
        await inside.caller.until("x", State="connected")


async def test_a_name_that_moves_away_from_a_silent_server_is_followed(
    net: Network, tmp_path: Path
) -> None:
    async with (
        Server(net.servers[0], PORT),
        Server(net.servers[1], PORT) as new,
        serving(net, tmp_path) as (inside, names),
    ):
        names.lead_to(address(0))
        await inside.caller.manage(URI, "x")
        await inside.caller.until("x", State="connected")
        net.servers[0].link(up=False)
        await inside.caller.until("x", State="waiting", StateReason="server-unreachable")
        names.lead_to(address(1))
        await new.happens("accepted", 0)
        await inside.caller.until("x", State="connected")


@pytest.mark.parametrize("hangs", [False, True])
async def test_what_is_connected_needs_its_name_no_more(
    net: Network, tmp_path: Path, *, hangs: bool
) -> None:
    async with (
        Server(net.servers[0], PORT, close_after=2) as server,
        serving(net, tmp_path) as (inside, names),
    ):
        names.lead_to(address())
        await inside.caller.manage(URI, "x")
        await inside.caller.until("x", State="connected")
        await inside.caller.told("x")
        told = len(inside.tape.entries)
        names.lead_to()
        with silent_name_server(net) if hangs else nullcontext():
            ended = await server.happens("ended", 0)
            again = await server.happens("accepted", ended.at)
            await server.happens("ended", again.at)
            await server.happens("accepted", again.at + 1)
        assert inside.tape.entries[told:] == []


@pytest.mark.parametrize(
    "addresses",
    [
        [f"{address()[:-2]}99", address()],
        ["fd00::99", address()],
        [f"{address()[:-2]}99", address_6()],
        ["fd00::99", address_6()],
    ],
)
async def test_all_addresses_of_a_name_are_tried(
    net: Network, tmp_path: Path, addresses: list[str]
) -> None:
    async with Server(net.servers[0], PORT), serving(net, tmp_path) as (inside, names):
        names.lead_to(*addresses)
        began = asyncio.get_running_loop().time()
        await inside.caller.manage(URI, "x")
        await inside.caller.until("x", State="connected")
        assert asyncio.get_running_loop().time() - began < 2  # before the first is given up
