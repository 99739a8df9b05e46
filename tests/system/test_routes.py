# SPDX-License-Identifier: LGPL-2.1-or-later
import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from storaged_conn.errors import NoAddressError, NoNetworkError
from storaged_conn.system.routes import Route, Routes
from tests.netns import Namespace, needs_root
from tests.system.cable import ADDRESSES, cable, plug

FAR = "198.51.100.1"
FAR_6 = "2001:db8::1"
"""Source: RFC 5737, TEST-NET-2, and RFC 3849: addresses that are nobody's."""

NEAR = "192.0.2.1"


@pytest.fixture
def routes() -> Iterator[Routes]:
    with closing(Routes()) as routes:
        yield routes


@pytest.fixture
def space() -> Iterator[Namespace]:
    with cable() as space:
        yield space


@pytest.fixture
def inside(space: Namespace) -> Iterator[Routes]:
    with space.entered():
        routes = Routes()
    with closing(routes):
        yield routes


@pytest.mark.parametrize("address", ["127.0.0.1", "127.5.5.5", "::1"])
def test_this_host_is_reached_by_its_loopback(routes: Routes, address: str) -> None:
    route = routes.find(address)
    assert (route.interface, route.gateway) == ("lo", "")
    assert route.source in ("127.0.0.1", "::1")


def test_each_question_gets_its_own_answer(routes: Routes) -> None:
    for _ in range(100):
        assert routes.find("127.0.0.1").source == "127.0.0.1"
        assert routes.find("::1").source == "::1"


def test_what_is_no_address_is_a_mistake_of_the_caller(routes: Routes) -> None:
    with pytest.raises(ValueError, match="localhost"):
        routes.find("localhost")


def test_a_closed_one_leaves_no_file() -> None:
    before = len(os.listdir("/proc/self/fd"))
    Routes().close()
    assert len(os.listdir("/proc/self/fd")) == before


@needs_root
@pytest.mark.root
class TestInANamespace:
    @pytest.mark.parametrize("address", ["127.0.0.1", "::1", FAR, FAR_6])
    def test_without_anything_there_is_no_network(self, inside: Routes, address: str) -> None:
        with pytest.raises(NoNetworkError, match=f"no route to {address}"):
            inside.find(address)

    def test_a_neighbour_is_reached_without_a_gateway(
        self, space: Namespace, inside: Routes
    ) -> None:
        plug(space, *ADDRESSES)
        assert inside.find("192.0.2.9") == Route("here", NEAR, "")
        assert inside.find("fd00::9") == Route("here", "fd00::1", "")
        assert inside.find(NEAR) == Route("lo", NEAR, "")
        with pytest.raises(NoNetworkError):
            inside.find(FAR)

    def test_what_is_far_is_reached_by_a_gateway(self, space: Namespace, inside: Routes) -> None:
        plug(space, *ADDRESSES)
        space.ip("route add default via 192.0.2.254", "route add default via fd00::fe")
        assert inside.find(FAR) == Route("here", NEAR, "192.0.2.254")
        assert inside.find(FAR_6) == Route("here", "fd00::1", "fd00::fe")

    def test_an_ipv4_address_may_have_a_gateway_of_the_other_family(
        self, space: Namespace, inside: Routes
    ) -> None:
        plug(space, f"address add {NEAR}/32 dev here", "address add fd00::1/64 dev here nodad")
        space.run("ip", "-4", "route", "add", "default", "via", "inet6", "fd00::fe", "dev", "here")
        assert (inside.find(FAR).interface, inside.find(FAR).source) == ("here", NEAR)

    def test_an_interface_that_is_down_is_no_network(
        self, space: Namespace, inside: Routes
    ) -> None:
        plug(space, *ADDRESSES)
        space.link("here", up=False)
        for address in ("192.0.2.9", "fd00::9"):
            with pytest.raises(NoNetworkError):
                inside.find(address)
        plug(space, *ADDRESSES[1:])
        assert inside.find("192.0.2.9").interface == inside.find("fd00::9").interface == "here"

    def test_a_cable_without_its_other_end_is_no_network(
        self, space: Namespace, inside: Routes
    ) -> None:
        plug(space, *ADDRESSES)
        space.link("there", up=False)
        with pytest.raises(NoNetworkError, match=r"here, the way to 192\.0\.2\.9, is down"):
            inside.find("192.0.2.9")
        with pytest.raises(NoNetworkError):
            inside.find("fd00::9")

    def test_a_route_without_an_address_is_no_address(
        self, space: Namespace, inside: Routes
    ) -> None:
        plug(space, "route add default dev here", "route add ::/0 dev here")
        for address in (FAR, FAR_6):
            with pytest.raises(NoAddressError, match=address):
                inside.find(address)

    def test_an_address_that_is_still_tentative_is_none(
        self, space: Namespace, inside: Routes
    ) -> None:
        plug(space)
        space.run("sysctl", "-qw", "net.ipv6.conf.here.accept_dad=1")
        space.run("sysctl", "-qw", "net.ipv6.conf.here.dad_transmits=1000")  # a second each
        space.ip("address add fd00::1/64 dev here")
        with pytest.raises(NoAddressError, match="fd00::9"):
            inside.find("fd00::9")
        space.ip("address add fd00::2/64 dev here nodad")
        assert inside.find("fd00::9") == Route("here", "fd00::2", "")

    def test_a_link_local_address_leads_no_further_than_its_link(
        self, space: Namespace, inside: Routes
    ) -> None:
        plug(space, "address add 169.254.1.1/16 dev here", "route add default dev here")
        space.ip("address add fe80::1/64 dev here nodad", "route add ::/0 dev here")
        for address in (FAR, FAR_6):
            with pytest.raises(NoAddressError, match=f"here has no address yet to reach {address}"):
                inside.find(address)
        assert inside.find("169.254.1.2") == Route("here", "169.254.1.1", "")

    @pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit", "throw"])
    def test_a_route_that_leads_nowhere_is_no_network(
        self, space: Namespace, inside: Routes, kind: str
    ) -> None:
        plug(space, *ADDRESSES)
        space.ip(f"route add {kind} {FAR}/32", f"route add {kind} {FAR_6}/128")
        for address in (FAR, FAR_6):
            with pytest.raises(NoNetworkError, match=f"there is no route to {address}: "):
                inside.find(address)
        assert inside.find("192.0.2.9").interface == "here"
