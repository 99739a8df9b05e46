# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells when an interface, an address or a route comes or goes, from rtnetlink's multicasts.

What a message says is not read: IPv4 routes vanish without one when an interface goes down, and
others come in bursts of thousands. Any message means that the ways to the servers must be looked at
again, once for a burst. pyroute2's own socket is not used for this: it must be reopened after every
overflow, and keeps what nobody takes; its codec reads the one kind of message that is read.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from struct import Struct
from typing import Final

from pyroute2.netlink.rtnl import (
    RTM_DELNEIGH,
    RTM_NEWNEIGH,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
    RTNLGRP_NEIGH,
)
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look, Source
from storaged_conn.system.servers import Servers

GROUPS: Final = (
    RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE
)

SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_DROP_MEMBERSHIP: Final = 2
"""Source: netlink(7), Socket options; include/linux/socket.h."""

BUFFER: Final = 8 * 1024 * 1024
"""Bytes: more than 5000 messages. Source: kernel-events.md 2.2."""

SO_RCVBUFFORCE: Final = 33
"""Source: socket(7); the module socket does not have it."""

BATCH: Final = 64
"""Messages taken in one turn of the loop: under 1 ms."""

FIRST_PAUSE: Final = 0.002
LONGEST_PAUSE: Final = 0.02
"""Seconds between two looks at the ways, none before the first, then doubled for as long as there
are messages: a link that comes up sends some ten within a few milliseconds, of which not the first
says that it can be used, and 100 000 route changes are looked at 50 times a second."""

THERE: Final = 0x02 | 0x04
"""NUD_REACHABLE, and NUD_STALE: what a host becomes that asks for us before it was asked. Source:
rtnetlink(7), ndm_state, which is at byte 8 of struct ndmsg; net/ipv4/arp.c, arp_process."""

_NLMSGHDR: Final = Struct("=IHHII")
_NDM_STATE: Final = Struct("=H")


class RouteSource(Source):
    """Has the ways to the servers looked at again after every change of the network."""

    def __init__(self, servers: Servers, *, buffer: int = BUFFER) -> None:
        """Nothing is watched before `start`."""
        self._servers = servers
        self._buffer = buffer
        self._socket: socket.socket | None = None
        self._resync: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pause = FIRST_PAUSE
        self._again = self._missed = self._neighbours = False
        self._marshal = MarshalRtnl()

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        """See Source; the servers tell what it means for them, so `look` is not needed."""
        self._resync = resync
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, self._buffer)
        except PermissionError:  # not root: as much as the system allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        self._socket.bind((0, GROUPS))
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        self._servers.listeners.append(lambda _: self._follow())
        self._follow()

    def close(self) -> None:
        """See Source."""
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        if self._timer:
            self._timer.cancel()

    def watch(self, topic: Topic) -> None:
        """See Source; the whole network is watched anyway."""

    def unwatch(self, topic: Topic) -> None:
        """See Source."""

    def _read(self) -> None:
        assert self._socket is not None
        for _ in range(BATCH):
            try:
                data, (sender, _) = self._socket.recvfrom(65536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overflow()
                continue
            if sender == 0:  # only the kernel has this port; see netlink(7)
                self._take(data)

    def _follow(self) -> None:
        """Hear of neighbours while a server is down; those in use come and go twice a minute."""
        wanted = self._servers.any_down()
        if self._socket and wanted is not self._neighbours:
            self._neighbours = wanted
            option = NETLINK_ADD_MEMBERSHIP if wanted else NETLINK_DROP_MEMBERSHIP
            self._socket.setsockopt(SOL_NETLINK, option, RTNLGRP_NEIGH)

    def _overflow(self) -> None:
        """Messages were lost: what they would have said is looked up, all of it."""
        self._missed = True
        self._changed()

    def _take(self, data: bytes) -> None:
        try:
            hosts = self._hosts_in(data)
        except Exception:  # noqa: BLE001  # pyroute2 lets out what it comes upon, such as KeyError
            self._overflow()
            return
        if hosts is None:
            self._changed()
            return
        self._follow()  # who was down may not be watched any more
        for host in hosts:
            self._servers.neighbour(host)

    def _hosts_in(self, data: bytes) -> list[str] | None:
        """Name the neighbours that a message says are there; None where it is no such message."""
        _, kind, _, _, _ = _NLMSGHDR.unpack_from(data)
        if kind not in {RTM_NEWNEIGH, RTM_DELNEIGH}:
            return None
        if not _NDM_STATE.unpack_from(data, _NLMSGHDR.size + 8)[0] & THERE:
            return []
        found = (message.get_attr("NDA_DST") for message in self._marshal.parse(data))
        return [str(address) for address in found if address]  # what a bridge has learnt is without

    def _changed(self) -> None:
        if self._timer:
            self._again = True
            return
        self._servers.recheck()
        if self._missed and self._resync:
            self._missed = False
            self._resync()
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._rested)

    def _rested(self) -> None:
        self._timer = None
        if self._again:
            self._again = False
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._changed()
        else:
            self._pause = FIRST_PAUSE
