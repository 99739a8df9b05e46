# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells when devices come, change and go, from udevd's multicasts.

The kernel's own come too early: only when udevd has handled an event are links there, such as
/dev/disk/by-uuid/X. What a message says of a device is not kept as its state: its names say what to
look at, and whether it says anything new says whether an attempt is worth while.

Only root is believed, which libudev sees to: it drops what another uid sent, what was sent to our
socket alone, and what somebody else than the kernel sent to the kernel's group. Source: systemd,
src/libsystemd/sd-device/device-monitor.c, device_monitor_receive_device. To send to a group at all
takes CAP_NET_ADMIN. Source: net/netlink/af_netlink.c, netlink_sendmsg.

Four traps (kernel-events.md 2.1). pyudev starts a process to find its library. After an overflow it
raises the same error for ever, until somebody reads SO_ERROR. To set the size of the buffer makes
it smaller: libudev has asked for 128 MiB already. And where udevd does not run yet and /dev is no
devtmpfs, as in a container, libudev joins no group and stays deaf when udevd starts; so this joins
by itself, which needs nobody to notice that start.

udevd sends within its own network namespace only: the service must not be in another.
"""

import asyncio
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import pyudev
from pyroute2.netlink import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK
from pyudev._ctypeslib import utils

from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look, Source

logger = logging.getLogger(__name__)

LIBRARY: Final = "libudev.so.1"

CONTROL: Final = Path("/run/udev/control")
"""Is there while udevd runs. Source: systemd, src/udev/udev-ctrl.c."""

UDEVD: Final = 2
"""The group that udevd sends to. Source: systemd,
src/libsystemd/sd-device/device-monitor-private.h."""

SESSIONS: Final = "iscsi_session"
_SESSION: Final = re.compile(r"/(session[0-9]+)/")
"""In the path of every disk of an iSCSI session. Source: drivers/scsi/scsi_transport_iscsi.c."""

NVME: Final = "nvme"
_NVME: Final = re.compile(r"/(nvme-subsys[0-9]+|nvme[0-9]+)/nvme[0-9]+n[0-9]+$")
"""The path of every namespace. Source: drivers/nvme/host/multipath.c, nvme_mpath_alloc_disk, where
it belongs to its subsystem; drivers/nvme/host/core.c, nvme_alloc_ns, where to its controller."""

BATCH: Final = 64
"""Messages taken in one turn of the loop: 4 to 6 ms. Source: kernel-events.md 2.1, 66 us each."""

PAUSE: Final = 0.1
"""Seconds from an overflow to the resync, so that a flood that overflows often is one resync."""


class Device(Protocol):
    """What is read of a pyudev.Device."""

    action: str
    subsystem: str
    sys_name: str
    device_path: str
    device_node: str | None
    device_links: Iterable[str]
    properties: Mapping[str, str]
    attributes: Mapping[str, bytes]


class UeventSource(Source):
    """Has connections looked at when devices that they may be on, or are, come, change or go.

    Topics: ("source", NAME) for a block device, by its node, by every link to it, and by the image
    behind it if it is a loop device.

    The image behind a loop device is no hint: mount(8) makes such a device for every attempt.
    """

    def __init__(self, others: Mapping[str, Callable[[str], None]] = MappingProxyType({})) -> None:
        """Nothing is watched before `start`.

        Args:
            others: what to call when there is news about an object of a further subsystem, with its
                name; that of SESSIONS also when there is about a disk of the session, and that of
                NVME about a namespace, with the name of what it belongs to.
        """
        self._others = others
        self._look: Look | None = None
        self._resync: Callable[[], None] | None = None
        self._monitor: pyudev.Monitor | None = None
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._facts: dict[str, tuple[str, ...]] = {}

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        """See Source."""
        self._look, self._resync = look, resync
        self._monitor = _monitor("block", *self._others)
        self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, UDEVD)
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        if not CONTROL.exists():
            logger.info("udevd does not run: nothing is heard of devices until it does")

    def close(self) -> None:
        """See Source."""
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = self._monitor = None
        if self._timer:
            self._timer.cancel()

    def watch(self, topic: Topic) -> None:
        """See Source; all devices are watched anyway."""

    def unwatch(self, topic: Topic) -> None:
        """See Source."""

    # messages

    def _read(self) -> None:
        assert self._socket is not None
        assert self._monitor is not None
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # and clears it
            self._lost()
        for _ in range(BATCH):
            try:
                device = self._monitor.poll(timeout=0)
            except OSError:  # an overflow just now, or a message that is too long
                self._lost()
                return
            if device is None:
                return
            try:
                self._take(device)
            except UnicodeDecodeError:  # for pyudev all names and properties are UTF-8
                self._lost()

    def _lost(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self._make_up)

    def _make_up(self) -> None:
        assert self._resync is not None
        self._timer = None
        self._resync()

    # devices

    def _take(self, device: Device) -> None:
        assert self._look is not None
        if device.subsystem == "block":
            self._take_block(device, self._look)
        else:
            self._others[device.subsystem](device.sys_name)

    def _take_block(self, device: Device, look: Look) -> None:
        names = (device.device_node or "", *device.device_links)
        news = self._is_news(device, names)
        for name in filter(None, names):
            # a link of a device that goes may lead to another from now on, which sends no message
            hint = os.path.lexists(name) if device.action == "remove" else news
            look(Topic("source", name), hint=hint)
        for subsystem, pattern in ((SESSIONS, _SESSION), (NVME, _NVME)):
            owner = pattern.search(device.device_path)
            if owner and subsystem in self._others:
                self._others[subsystem](owner[1])
        image = device.attributes.get("loop/backing_file")
        if image:
            look(Topic("source", os.fsdecode(image)), hint=False)

    def _is_news(self, device: Device, names: tuple[str, ...]) -> bool:
        """Say whether a message may mean that an attempt would end otherwise than before.

        What is written to the `uevent` file, and not the kernel's own, must say something new of
        the device: udevd writes there whenever somebody closes the device after writing, which may
        be a helper of mount(8) that failed, and `udevadm trigger` does for all devices at once.
        Source: udev(7), OPTIONS watch; Documentation/ABI/testing/sysfs-uevent, SYNTH_UUID.
        """
        if device.action == "remove":
            self._facts.pop(device.sys_name, None)
            return False
        facts = (*sorted(names), device.properties.get("ID_FS_TYPE", ""))
        before, self._facts[device.sys_name] = self._facts.get(device.sys_name), facts
        return facts != before or "SYNTH_UUID" not in device.properties


def _monitor(*subsystems: str) -> pyudev.Monitor:
    """Open what receives messages of these subsystems only; the kernel drops the others.

    Raises:
        OSError: there is no libudev, or the socket cannot be opened.
    """
    utils.find_library = lambda _: LIBRARY
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
    for subsystem in subsystems:
        monitor.filter_by(subsystem)
    monitor.start()
    return monitor
