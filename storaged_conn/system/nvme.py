# SPDX-License-Identifier: LGPL-2.1-or-later
"""The NVMe controllers of this host that are at a fabric, as /sys/class/nvme shows them.

Those in a PCIe slot are never looked at, beyond what tells that they are. Nothing here can block:
it is all in the kernel's memory.

Where the kernel does multipath, as by default, a namespace is one block device, nvme0n1, that
belongs to its subsystem, and each controller has a hidden path to it, nvme0c1n1; elsewhere each
controller has a block device of its own. Source: drivers/nvme/host/multipath.c,
nvme_mpath_set_disk_name.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storaged_conn.system.devices import UDEV, links_to

SYS: Final = Path("/sys")

FABRICS: Final = frozenset({"tcp", "rdma", "fc"})

LIVE: Final = "live"
CONNECTING: Final = "connecting"
LEAVING: Final = frozenset({"deleting", "deleting (no IO)", "dead"})
"""The states in which a controller goes for good. Source: drivers/nvme/host/sysfs.c,
nvme_sysfs_show_state."""

CONTROL: Final = Path("/run/udev/control")
"""Is there while udevd runs. Source: systemd, src/udev/udev-ctrl.c."""

_NAME: Final = re.compile(r"nvme[0-9]+")
_NAMESPACE: Final = re.compile(r"(nvme[0-9]+)(?:c[0-9]+)?(n[0-9]+)")


@dataclass(frozen=True, slots=True)
class Controller:
    """One controller, as it was when it was new.

    Attributes:
        name: nvme0; the kernel gives the smallest free number to the next one.
        serial: tells it from all that had its name before: the number of its directory, which is
            never given out again. Source: fs/kernfs/dir.c, kernfs_new_node; struct kernfs_node, id.
        address: what it is connected to, and from where: traddr, trsvcid, host_traddr, host_iface.
        nqn: the subsystem's.
        host_nqn: who we are to it.
    """

    name: str
    serial: int
    transport: str
    address: Mapping[str, str]
    nqn: str
    host_nqn: str


@dataclass(frozen=True, slots=True)
class Namespace:
    """One namespace that a controller leads to.

    Attributes:
        name: of the block device.
        device: its major:minor.
        links: all names that udev has given it.
        ready: udev has handled it, so that its links are there; or there is no udev.
    """

    name: str
    device: str
    links: tuple[str, ...]
    ready: bool

    @property
    def path(self) -> str:
        """Its best name: by its UUID, NGUID or EUI64, or what else is in /dev/disk/by-id."""
        by_id = [one for one in self.links if one.startswith("/dev/disk/by-id/nvme-")]
        lasting = [one for one in by_id if one.startswith(_LASTING)]
        return next(iter(sorted(lasting) or sorted(by_id)), f"/dev/{self.name}")


_LASTING: Final = ("/dev/disk/by-id/nvme-uuid.", "/dev/disk/by-id/nvme-eui.")
"""Source: systemd, rules.d/60-persistent-storage.rules, by the attribute wwid;
drivers/nvme/host/sysfs.c, wwid_show: eui. is of an NGUID, too."""


class Controllers:
    """Reads them; what cannot change is read once.

    Attributes:
        sys: where sysfs is.
    """

    def __init__(self, sys: Path = SYS, udev: Path = UDEV, control: Path = CONTROL) -> None:
        """Nothing is read yet."""
        self.sys = sys
        self._class = sys / "class/nvme"
        self._udev = udev
        self._control = control
        self._known: dict[str, Controller] = {}
        self._serials: dict[str, int] = {}

    def all(self) -> list[Controller]:
        """List those at a fabric, in the order in which the kernel made them.

        Raises:
            OSError: it is not known which there are.
        """
        try:
            names = [name for name in os.listdir(self._class) if _NAME.fullmatch(name)]
        except FileNotFoundError:
            return []  # nvme-core is not loaded
        for name in self._known.keys() - set(names):
            del self._known[name], self._serials[name]
        found = (self._read(name) for name in sorted(names, key=lambda name: int(name[4:])))
        return [one for one in found if one]

    def state(self, controller: Controller) -> str:
        """Read the kernel's word for how it is now, empty where it is gone."""
        if self.serial(controller.name) != controller.serial:
            return ""
        return self.read(controller, "state")

    def read(self, controller: Controller, attribute: str) -> str:
        """Read an attribute, empty where there is none."""
        return read_line(self._class / controller.name / attribute)

    def namespaces(self, controller: Controller) -> list[Namespace]:
        """List the block devices that it leads to, by their namespace ids.

        Their names say nothing of that: Linux 6.12 looks for all at once.
        """
        return [self._namespace(name) for name in sorted(self.heads(controller), key=self._place)]

    def heads(self, controller: Controller) -> Iterator[str]:
        """Name the block devices that it leads to."""
        try:
            entries = os.listdir(self._class / controller.name)
        except OSError:
            return
        for entry in entries:
            match = _NAMESPACE.fullmatch(entry)
            if match and (self.sys / "class/block" / "".join(match.groups())).exists():
                yield "".join(match.groups())

    def _read(self, name: str) -> Controller | None:
        serial = self.serial(name)
        if name not in self._known or self._serials[name] != serial:
            found = self._read_new(name, serial)
            if found.transport not in FABRICS or not found.nqn or not found.address:
                return None  # in a slot, or it comes or goes just now: there will be news of that
            self._known[name], self._serials[name] = found, serial
        return self._known[name]

    def _read_new(self, name: str, serial: int) -> Controller:
        top = self._class / name
        transport = read_line(top / "transport")
        fields = (part.partition("=")[::2] for part in read_line(top / "address").split(","))
        address = {key.strip(): value for key, value in fields if value}
        nqn, host_nqn = read_nqn(top), read_line(top / "hostnqn")
        return Controller(name, serial, transport, address, nqn, host_nqn)

    def serial(self, name: str) -> int:
        """Give what tells a controller from all that had its name before; 0 where there is none."""
        try:
            return (self._class / name / "").stat().st_ino
        except OSError:
            return 0

    def _place(self, name: str) -> list[int]:
        nsid = read_line(self.sys / "class/block" / name / "nsid")
        return [int(digits) for digits in re.findall(r"[0-9]+", f"{nsid} {name}")]

    def _namespace(self, name: str) -> Namespace:
        device = read_line(self.sys / "class/block" / name / "dev")
        handled = (self._udev / f"b{device}").exists() or not self._control.exists()
        links = tuple(links_to(device, self._udev)) if device else ()
        return Namespace(name, device, links, bool(device) and handled)


def read_nqn(directory: Path) -> str:
    """Read the subsystem's NQN, empty where what has it is gone, or is only coming.

    A controller is there before it has a subsystem; `(efault)` is what the kernel prints then.
    Source: drivers/nvme/host/sysfs.c, nvme_sysfs_show_subsysnqn; lib/vsprintf.c, check_pointer_msg.
    """
    nqn = read_line(directory / "subsysnqn")
    return nqn if nqn.startswith("nqn.") else ""


def read_line(file: Path) -> str:
    """Read a file of one line, such as an attribute; empty where there is none, or no text."""
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""
