# SPDX-License-Identifier: LGPL-2.1-or-later
"""A network of namespaces for tests: a client and servers at one switch, and faults to play.

    with network() as net, Server(net.servers[0], 2049) as server:
        ...                         # the service runs behind net.client.prefix
        net.client.link(up=False)   # the client's own interface
        net.drop()                  # what the switch forwards is lost, and nobody is told

Nothing of it has a name outside, and nothing leads out: a namespace lives as long as its file
descriptor here and the processes inside, so it is gone after any end of the tests.
"""

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

import pytest
from pyroute2.netlink.rtnl import RTM_NEWADDR, RTMGRP_IPV6_IFADDR
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from storaged_conn.system.run import ENVIRONMENT
from tests.live import DEADLINE

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make network namespaces")

INTERFACE: Final = "eth0"
"""The name of the only one, in the client and in each server."""

PREFIX_4: Final = "192.0.2"
"""Source: RFC 5737, TEST-NET-1: addresses that are nobody's."""

PREFIX_6: Final = "fd00:"

FIRST_SERVER: Final = 11
"""The last part of the first server's addresses; the client's is 1."""

CLIENT: Final = f"{PREFIX_4}.1"

DISCARD: Final = 9
"""Source: RFC 863."""

CLONE_NEWNET: Final = 0x40000000
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 1
IFA_F_TENTATIVE: Final = 0x40
"""Source: sched.h, bits/ioctls.h, netdevice(7), rtnetlink(7)."""

_IFREQ: Final = struct.Struct("16sH22x")

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Namespace:
    """A network namespace.

    Attributes:
        path: what to enter it by.
        prefix: what to put before a command so that it runs inside.
    """

    def __init__(self) -> None:
        with _returning():
            _check(_libc.unshare(CLONE_NEWNET))
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self.prefix = ("nsenter", f"--net={self.path}")
        with self.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def close(self) -> None:
        self._socket.close()
        os.close(self._fd)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread make sockets inside; nothing may be awaited meanwhile."""
        with _returning():
            _check(_libc.setns(self._fd, CLONE_NEWNET))
            yield

    def run(self, *argv: str, text: str | None = None) -> str:
        """Run a tool inside that must succeed; gives its output."""
        command = [*self.prefix, *argv]
        done = subprocess.run(
            command, input=text, text=True, capture_output=True, env=ENVIRONMENT, timeout=DEADLINE,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
        return done.stdout

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8) inside, all in one process."""
        self.run("ip", "-batch", "-", text="\n".join(commands))

    def flood(self, changes: int) -> None:
        """Change so many routes, to nowhere, as fast as the kernel takes it; none is left."""
        routes = [f"10.{one >> 16}.{one >> 8 & 255}.{one & 255}" for one in range(changes // 2)]
        commands = [f"route {what} blackhole {one}" for what in ("add", "del") for one in routes]
        self.ip(*commands)

    def link(self, interface: str = INTERFACE, *, up: bool) -> None:
        """Set an interface up or down; in this process, as that takes least time."""
        name = interface.encode()
        answer = fcntl.ioctl(self._socket, SIOCGIFFLAGS, _IFREQ.pack(name, 0))
        flags = _IFREQ.unpack(answer)[1]
        flags = flags | IFF_UP if up else flags & ~IFF_UP
        fcntl.ioctl(self._socket, SIOCSIFFLAGS, _IFREQ.pack(name, flags))

    def speak(self, address: str) -> None:
        """Send a packet to a host on the link, having its address asked for if it is not known."""
        self._socket.sendto(b"", (address, DISCARD))

    async def settled(self, address: str) -> float:
        """Return the time at which an IPv6 address that is to come is no longer tentative."""
        with self.entered():
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
            news = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        with news:
            news.bind((0, RTMGRP_IPV6_IFADDR))
            async with asyncio.timeout(DEADLINE):
                loop = asyncio.get_running_loop()
                while not _settled(await loop.sock_recv(news, 65536), address):
                    pass
                return loop.time()


def _settled(data: bytes, address: str) -> bool:
    return any(
        message["header"]["type"] == RTM_NEWADDR
        and message.get_attr("IFA_ADDRESS") == address
        and not message.get_attr("IFA_FLAGS") & IFA_F_TENTATIVE
        for message in MarshalRtnl().parse(data)
    )


@contextmanager
def _returning() -> Iterator[None]:
    """Return to the namespace where this thread is."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _check(_libc.setns(home, CLONE_NEWNET))
        os.close(home)


class Happening(NamedTuple):
    """Something that a server saw.

    Attributes:
        kind: `listening`, `accepted` or `ended`; the last two are of one of its connections.
        at: monotonic seconds.
        peer: whose connection.
    """

    kind: str
    at: float
    peer: str


@dataclass(frozen=True)
class Network:
    """A client and servers, each with `eth0`, at the ports `client` and `serverN` of a switch."""

    client: Namespace
    switch: Namespace
    servers: list[Namespace]

    def drop(self) -> None:
        """Lose all that the switch forwards."""
        self.switch.run("nft", "-f", "-", text=DROP)

    def deliver(self) -> None:
        """Undo `drop`."""
        self.switch.run("nft", "delete", "table", "bridge", "faults")

    def close(self) -> None:
        for one in (self.client, self.switch, *self.servers):
            one.close()


DROP: Final = """
table bridge faults {
    chain everything { type filter hook forward priority 0; policy drop; }
}
"""


def address(server: int = 0) -> str:
    """Give a server's IPv4 address."""
    return f"{PREFIX_4}.{FIRST_SERVER + server}"


def address_6(server: int = 0) -> str:
    """Give a server's IPv6 address."""
    return f"{PREFIX_6}:{FIRST_SERVER + server}"


@contextmanager
def network(servers: int = 1, *, cable: bool = False) -> Iterator[Network]:
    """Make a network in which everything is up and has its addresses.

    Args:
        cable: join the client and the only server without the switch.
    """
    net = Network(Namespace(), Namespace(), [Namespace() for _ in range(servers)])
    hosts = [net.client, *net.servers]
    try:
        if cable:
            # Numbers that differ, or the kernel lets a carrier's loss wait for up to a second, see
            # net/core/link_watch.c, linkwatch_urgent_event.
            there = f"index 20 type veth peer name {INTERFACE} netns {net.client.path}"
            net.servers[0].ip(f"link add {INTERFACE} {there}")
        else:
            net.switch.ip("link add br0 type bridge mcast_snooping 0", "link set br0 up")
            ports = ["client", *(f"server{number}" for number in range(servers))]
            for port, host in zip(ports, hosts, strict=True):
                _plug(net.switch, port, host)
        for host, number in zip(hosts, [1, *range(FIRST_SERVER, 255)], strict=False):
            _set_up(host, number)
        yield net
    finally:
        net.close()


def _plug(switch: Namespace, port: str, host: Namespace) -> None:
    switch.ip(
        f"link add {port} type veth peer name {INTERFACE} netns {host.path}",
        f"link set {port} master br0 up",
    )


def _set_up(host: Namespace, number: int) -> None:
    host.ip(
        "link set lo up",
        f"link set {INTERFACE} up",
        f"address add {PREFIX_4}.{number}/24 dev {INTERFACE}",
        f"address add {PREFIX_6}:{number}/64 dev {INTERFACE} nodad",
    )


class Server:
    """A TCP server that does nothing but to accept, a process in a namespace.

    Attributes:
        happenings: what it saw, in all its runs.
    """

    def __init__(self, namespace: Namespace, port: int, *, close_after: float = 0) -> None:
        """Prepare it.

        Args:
            close_after: seconds after which it politely closes a connection; 0 is never.
        """
        program = str(Path(__file__).parent / "data" / "tcp_server.py")
        self.happenings: list[Happening] = []
        self._argv = [*namespace.prefix, sys.executable, "-I", program, str(port), str(close_after)]
        self._process: subprocess.Popen[bytes] | None = None
        self._news = asyncio.Event()
        self._rest = b""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> float:
        """Start it; returns the time at which it accepts."""
        began = asyncio.get_running_loop().time()
        self._launch()
        return (await self.happens("listening", began)).at

    def _launch(self) -> None:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        asyncio.get_running_loop().add_reader(self._process.stdout, self._read)

    async def kill(self) -> float:
        """End it by SIGKILL, if it runs; returns the time before that."""
        began = asyncio.get_running_loop().time()
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)  # the loop has others to hear meanwhile
            assert self._process.stdout is not None
            asyncio.get_running_loop().remove_reader(self._process.stdout)
            self._process.stdout.close()
            self._process = None
        return began

    async def happens(self, kind: str, after: float) -> Happening:
        """Return the first of its kind that happens after a time, or has happened."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._news.clear()
                for one in self.happenings:
                    if one.kind == kind and one.at >= after:
                        return one
                await self._news.wait()

    def count(self, kind: str) -> int:
        """Say how many of a kind have happened."""
        return sum(one.kind == kind for one in self.happenings)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        *lines, self._rest = (self._rest + os.read(self._process.stdout.fileno(), 65536)).split(
            b"\n"
        )
        for line in lines:
            kind, at, peer = line.decode().split(" ")
            self.happenings.append(Happening(kind, float(at), peer))
        self._news.set()
