# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks the kernel how it would reach an address, instead of guessing from tables.

rtnetlink answers such a question within the system call that asks it, so the answer is there when
`send` returns and nothing can block: 60 us for the route, 90 us for the interface.
"""

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pyroute2.netlink import NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_GETROUTE
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from storaged_conn.errors import NoAddressError, NoNetworkError

USABLE: Final = 0x10000 | 0x40
"""IFF_LOWER_UP and IFF_RUNNING: the other end is there, and packets are no longer thrown away, as
they are for some 0.3 ms more, or until 802.1X has let this host in. Source: netdevice(7); kernel
Documentation/networking/operstates.rst; net/core/link_watch.c, linkwatch_do_dev."""

MAX_REPLY: Final = 64 * 1024
"""Source: netlink(7): more than any reply about one object."""


@dataclass(frozen=True, slots=True)
class Route:
    """How the kernel would reach an address now."""

    interface: str
    source: str
    gateway: str


class _Reply(Protocol):
    def __getitem__(self, name: str) -> Any: ...
    def get_attr(self, name: str) -> object: ...


class Routes:
    """A socket to ask on."""

    def __init__(self) -> None:
        """Open it."""
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._marshal = MarshalRtnl()

    def find(self, address: str) -> Route:
        """Say how the kernel would reach an address now.

        Raises:
            NoNetworkError: it would not: there is no route, or its interface is down.
            NoAddressError: it has no address to send from.
        """
        ip = ipaddress.ip_address(address)
        question = rtmsg()
        question["family"] = socket.AF_INET if ip.version == 4 else socket.AF_INET6  # noqa: PLR2004
        question["dst_len"] = ip.max_prefixlen
        question["attrs"] = [("RTA_DST", str(ip).partition("%")[0])]
        route = self._ask(question, RTM_GETROUTE, address)
        interface = self._interface(route.get_attr("RTA_OIF"), address)
        source = str(route.get_attr("RTA_PREFSRC") or "")
        if not _fits(source, ip):
            raise NoAddressError(f"{interface} has no address yet to reach {address} from; wait")
        return Route(interface, source, str(route.get_attr("RTA_GATEWAY") or ""))

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _interface(self, index: object, address: str) -> str:
        question = ifinfmsg()
        question["index"] = index
        link = self._ask(question, RTM_GETLINK, address)
        name = link.get_attr("IFLA_IFNAME")
        if link["flags"] & USABLE != USABLE:
            raise NoNetworkError(f"{name}, the way to {address}, is down; wait, or see its cable")
        return str(name)

    def _ask(self, question: "rtmsg | ifinfmsg", kind: int, address: str) -> _Reply:
        question["header"]["type"] = kind
        question["header"]["flags"] = NLM_F_REQUEST
        question.encode()
        self._socket.send(question.data)
        reply: _Reply = next(iter(self._marshal.parse(self._socket.recv(MAX_REPLY))))
        code = getattr(reply["header"]["error"], "code", 0)
        if code == errno.EADDRNOTAVAIL:
            raise NoAddressError(f"there is no address to reach {address} from; wait for one")
        if code:
            why = os.strerror(code)
            raise NoNetworkError(f"there is no route to {address}: {why}; wait for the network")
        return reply


def _fits(source: str, destination: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Say whether a source address leads back: a link-local one does only on its own link.

    While an address is tentative (duplicate address detection, RFC 4862 section 5.4), the kernel
    chooses a link-local one instead, or that of the loopback.
    """
    if not source:
        return False
    ip = ipaddress.ip_address(source)
    if ip.is_loopback:
        return destination.is_loopback
    return destination.is_link_local or not ip.is_link_local
