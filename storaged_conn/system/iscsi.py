# SPDX-License-Identifier: LGPL-2.1-or-later
"""The iSCSI sessions of this host, as the kernel shows them, kept until they are read again.

Everything here is /sys and /run/udev, of which nothing waits for a target. What cannot change is
read once for each session, and the rest when somebody has heard of that session: to read 50 whole
sessions takes 12 ms, too much for every event.

Source: drivers/scsi/scsi_transport_iscsi.c, iscsi_session_attrs and iscsi_conn_attrs.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from storaged_conn.system.devices import UDEV, links_to

SYS: Final = Path("/sys")

LOGGED_IN: Final = "LOGGED_IN"
FAILED: Final = "FAILED"
FREE: Final = "FREE"
"""Source: drivers/scsi/scsi_transport_iscsi.c, iscsi_session_state_names. A session is FREE
before its first login, and again when it has failed for replacement_timeout, which is as good as
FAILED: session_recovery_timedout."""

STATES: Final = frozenset({LOGGED_IN, FAILED})
"""In these, a session has been told all that it is; before, iscsid is still telling the kernel."""

DISKS: Final = frozenset({"0", "4", "5", "7", "14", "20"})
"""The types of SCSI devices that become block devices: disk, WORM, CD, optical, RBC, zoned. Source:
include/scsi/scsi_proto.h; drivers/scsi/sd.c and sr.c, probe."""

SHOWN: Final = ("/dev/disk/by-path/", "/dev/disk/by-id/")
"""The links that say which LUN a device is; others are about what is on it."""


class Where(NamedTuple):
    """What tells two sessions of this host apart.

    Attributes:
        address: as it is in the node record.
        interface: the iface record.
    """

    iqn: str
    address: str
    port: int
    interface: str


@dataclass(frozen=True, slots=True)
class Disk:
    """One LUN that is a block device, or will be.

    Attributes:
        name: such as sda, or nothing before the kernel has made it.
        number: major:minor.
        names: its node and the links that udev made; none before udev has finished.
    """

    lun: int
    name: str = ""
    number: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """One session.

    Attributes:
        name: such as session3.
        portal: the target portal group tag.
        state: LOGGED_IN, FAILED, or FREE before its first login.
    """

    name: str
    where: Where
    portal: int
    state: str
    disks: tuple[Disk, ...] = ()

    @property
    def number(self) -> int:
        """The kernel's number, by which iscsiadm knows it, too."""
        return int(self.name.removeprefix("session"))


class Sessions:
    """All sessions, as they were read last.

    Attributes:
        sys: where sysfs is.
        changed: is called with the target's name when anything about a session is found to differ.
    """

    def __init__(self, sys: Path = SYS, udev: Path = UDEV) -> None:
        """Nothing is known before the first look-up."""
        self.sys = sys
        self.changed: Callable[[str], None] = lambda iqn: None
        self._class = sys / "class/iscsi_session"
        self._connections = sys / "class/iscsi_connection"
        self._udev = udev
        self._known: dict[str, Session] = {}

    def all(self) -> Mapping[str, Session]:
        """Give all sessions by their names; those that are new are read, the others are not."""
        there = self._names()
        for name in self._known.keys() - there:
            self.changed(self._known.pop(name).where.iqn)
        for name in sorted(there - self._known.keys()):
            self.refresh(name)
        return self._known

    def refresh(self, name: str) -> Session | None:
        """Read one session again; None where it is gone, or only just being made."""
        before, now = self._known.get(name), self._read(name)
        if now == before:
            return before  # the same object, as others know it
        if now:
            self._known[name] = now
        else:
            del self._known[name]
        for iqn in {one.where.iqn for one in (before, now) if one}:
            self.changed(iqn)
        return now

    def of_target(self, iqn: str) -> list[Session]:
        """Read all sessions with a target again."""
        mine = [one.name for one in self.all().values() if one.where.iqn == iqn]
        return [session for name in mine if (session := self.refresh(name))]

    def _names(self) -> set[str]:
        try:
            return set(os.listdir(self._class))
        except FileNotFoundError:
            return set()

    def _read(self, name: str) -> Session | None:
        try:
            known = self._known.get(name)
            is_made = known is not None and known.state in STATES
            # first, since only what is logged in has been told all of what it is
            state = _line(self._class / name / "state")
            session = known if known and is_made else self._read_static(name)
            devices = list(self._devices(name))
            disks = sorted(self._disks(devices), key=lambda disk: disk.lun)
        except (OSError, ValueError):
            return None
        if state == FREE and (is_made or devices):
            state = FAILED
        return replace(session, state=state, disks=tuple(disks))

    def _read_static(self, name: str) -> Session:
        """Read what stays the same for the life of a session.

        Raises:
            OSError: it is gone, or has no connection yet.
            ValueError: it has not been told yet what it is.
        """
        session = self._class / name
        connection = self._connections / f"connection{name.removeprefix('session')}:0"
        where = Where(
            _line(session / "targetname"),
            _line(connection / "persistent_address"),
            int(_line(connection / "persistent_port")),
            _line(session / "ifacename") or "default",
        )
        if not where.iqn or not where.address:
            raise ValueError(name)
        return Session(name, where, int(_line(session / "tpgt")), "")

    def _devices(self, name: str) -> Iterator[Path]:
        """Give the SCSI devices. Source: drivers/scsi/scsi_sysfs.c: targetH:C:T/H:C:T:L."""
        for target in (self._class / name / "device").glob("target*"):
            yield from target.glob("*:*:*:*")

    def _disks(self, devices: Iterable[Path]) -> Iterator[Disk]:
        for device in devices:
            with suppress(OSError, ValueError):  # gone meanwhile
                if _line(device / "type") in DISKS:
                    yield self._disk(device, int(device.name.rpartition(":")[2]))

    def _disk(self, device: Path, lun: int) -> Disk:
        blocks = sorted((device / "block").iterdir()) if (device / "block").exists() else []
        if not blocks:
            return Disk(lun)
        name, number = blocks[0].name, _line(blocks[0] / "dev")
        if not (self._udev / f"b{number}").exists():
            return Disk(lun, name, number)
        links = [link for link in links_to(number, self._udev) if link.startswith(SHOWN)]
        return Disk(lun, name, number, (f"/dev/{name}", *sorted(links)))


def _line(path: Path) -> str:
    text = path.read_text(errors="replace").strip()
    return "" if text in {"<NULL>", "(null)"} else text
