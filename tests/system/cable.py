# SPDX-License-Identifier: LGPL-2.1-or-later
"""A network of its own with one cable, whose ends are `here` and `there`."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pyroute2.netlink.rtnl import RTMGRP_IPV6_ROUTE, RTMGRP_LINK
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from tests.netns import Namespace
from tests.system.ports import DEADLINE

ADDRESSES = ("address add 192.0.2.1/24 dev here", "address add fd00::1/64 dev here nodad")


@contextmanager
def cable() -> Iterator[Namespace]:
    """Give a network in which both ends are down, and have no address of their own."""
    with closing(Namespace()) as space:
        space.ip("link add here type veth peer name there", "link set here addrgenmode none")
        space.ip("link set there addrgenmode none")
        yield space


def plug(space: Namespace, *more: str) -> None:
    """Bring both ends up, then run more commands; return when all that comes of it has come."""
    with space.entered():
        news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    with news:
        news.settimeout(DEADLINE)
        news.bind((0, RTMGRP_LINK | RTMGRP_IPV6_ROUTE))
        space.ip("link set lo up", "link set here up", "link set there up")
        _hear(news, "here UP", "there UP")
        space.ip(*more)
        if ADDRESSES[1] in more:
            _hear(news, "to fd00::1")


def _hear(news: socket.socket, *wanted: str) -> None:
    """Wait until the kernel has said what it says some time after the act."""
    missing = set(wanted)
    while missing:
        for message in MarshalRtnl().parse(news.recv(65536)):
            state = f"{message.get_attr('IFLA_IFNAME')} {message.get_attr('IFLA_OPERSTATE')}"
            missing -= {state, f"to {message.get_attr('RTA_DST')}"}
