# SPDX-License-Identifier: LGPL-2.1-or-later
"""What comes by netlink, and by the bus: messages to begin with, and who takes them."""

import asyncio
import ctypes
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final, cast

import pyudev
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyudev._ctypeslib import utils

from storaged_conn.bus import wire
from storaged_conn.core.model import Topic
from storaged_conn.sources.iscsi import TRANSPORTS, IscsiSource
from storaged_conn.sources.routes import RouteSource
from storaged_conn.sources.uevents import LIBRARY, NVME, UeventSource
from storaged_conn.sources.uevents import SESSIONS as DISKS
from storaged_conn.system.iscsi import Sessions
from storaged_conn.system.servers import Servers


class Listeners(Servers):
    """Servers to whom somebody else tells things; they take any text."""

    def __init__(self) -> None:
        self.changes = 0

    def any_down(self) -> bool:
        return True

    def recheck(self) -> None:
        self.changes += 1

    def neighbour(self, address: str) -> None:
        assert isinstance(address, str)


@cache
def never() -> asyncio.TimerHandle:
    """Give a timer, so that nobody starts one: there is no loop to run it."""
    return asyncio.new_event_loop().call_later(1, never)


def feed_routes(data: bytes) -> None:
    """A message of rtnetlink."""
    source = RouteSource(Listeners())
    source._timer = never()
    source._take(data)


def feed_iscsi(data: bytes) -> None:
    """A message of NETLINK_ISCSI."""
    source = IscsiSource(Sessions())
    for session in source._sessions(data):
        assert session == "" or session.removeprefix("session").isdecimal()


STRANGE_NODE: Final = re.compile(rb"(^|\0)DEVNAME=(?!/dev/[a-z0-9\x80-\xff]{1,64}(\0|$))")
"""What libudev ends the process for. Source: systemd 252, sd_device_get_devname."""

SUBSYSTEMS: Final = {"block", NVME, TRANSPORTS, DISKS}
"""Those that the kernel and libudev let through; see filter_by of pyudev.Monitor."""


NO_DEVICE: Final = (OSError, pyudev.DeviceNotFoundError, AttributeError, UnicodeDecodeError)
"""How pyudev says that libudev sees no device; the last two, that it has no name of its own."""


class Monitor:
    """Gives one device, made of a message as libudev does it, and then no more."""

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    def poll(self, timeout: int) -> Any:
        data, self._data = self._data, None
        if data is None or STRANGE_NODE.search(data):
            return None
        context = _context()
        with _environment(data), suppress(*NO_DEVICE):
            device = pyudev.Devices.from_environment(context)
            if device.subsystem in SUBSYSTEMS and device.sys_name:
                return device
        return None  # libudev took it for no device, or for none of ours


def feed_uevents(data: bytes) -> None:
    """NAME=VALUE NUL ...: a message of udevd, which libudev reads in the same way."""
    source = UeventSource({TRANSPORTS: _hear, DISKS: _hear, NVME: _hear})
    source._look = _look
    source._timer = never()
    source._monitor = cast("Any", Monitor(data))
    source._socket, _ = _quiet()
    source._read()


def _hear(name: str) -> None:
    os.fsencode(name)


def _look(topic: Topic, *, hint: bool) -> None:
    assert isinstance(hint, bool)
    os.fsencode(topic.name)


@cache
def _quiet() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


@cache
def _context() -> Any:
    utils.find_library = lambda _: LIBRARY
    return pyudev.Context()


@contextmanager
def _environment(data: bytes) -> Iterator[None]:
    """Have the message be the environment of this process, in memory of its own.

    Not by putenv(3): libudev cuts the texts where they are, and glibc gives the same ones again.
    """
    texts = [ctypes.create_string_buffer(one) for one in data.split(b"\0") if one]
    array = (ctypes.c_void_p * (len(texts) + 1))(*map(ctypes.addressof, texts), None)
    environ = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "environ")
    before, environ.value = environ.value, ctypes.addressof(array)
    try:
        yield
    finally:
        environ.value = before


def _neighbour(address: str) -> bytes:
    message = ndmsg()
    message["header"]["type"] = 28  # RTM_NEWNEIGH
    message["family"], message["state"] = socket.AF_INET, 2
    message["attrs"] = [("NDA_DST", address)]
    message.encode()
    return bytes(message.data)


_WORD: Final = (101).to_bytes(4, "little")
_DEVICE: Final = (
    b"DEVPATH=/devices/virtual/block/loop77\0SUBSYSTEM=block\0SEQNUM=12\0MAJOR=7\0MINOR=77"
)

ROUTES: Final = (_neighbour("192.0.2.1"), b"", bytes(20), b"\xff" * 28)
SESSIONS: Final = (bytes([72]) + bytes(15) + _WORD + bytes(52), b"", bytes(16), b"\xff" * 20)
DEVICES: Final = (
    _DEVICE + b"\0ACTION=change\0DEVNAME=/dev/loop77\0DEVLINKS=/dev/x /dev/y\0ID_FS_TYPE=ext4",
    _DEVICE + b"\0ACTION=remove\0DEVNAME=/dev/loop77\0DEVLINKS=/dev/\xff",
    _DEVICE + b"\0ACTION=change\0SYNTH_UUID=0\0ID_FS_TYPE=\xff",
    b"DEVPATH=/devices/virtual/x/nvme0\0SUBSYSTEM=nvme\0SEQNUM=12\0ACTION=add",
)
MESSAGES: Final = tuple(
    wire.header(wire.Message(wire.Kind.CALL, 0, 1, {1: "/x", 3: "List", 8: signature}, body)) + body
    for signature, body in (
        ("", b""),
        ("s", wire.marshal("s", ["x"])),
        ("sa{sv}", wire.nest("x", [wire.entry("a", "as", ["b"]), wire.entry("c", "x", 1)])),
    )
)
