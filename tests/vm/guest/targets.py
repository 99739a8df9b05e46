# SPDX-License-Identifier: LGPL-2.1-or-later
"""Another machine that offers iSCSI targets: by tgtd, or by LIO, the kernel's own.

    with Tgt(20) as machine:            # or Lio(21)
        iqn = machine.offer("disk")     # before start() or after it
        machine.start()                 # at machine.address and machine.second, port 3260
        machine.stop()                  # as if killed: closed, then refused

LIO runs in the guest's own kernel, and only its portals are in the machine's network: so the names
of its targets are unique in the guest, and a machine is known by them.
"""

import os
import socket
import subprocess
import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from tests.live import DEADLINE
from tests.vm.guest.machine import Machine
from tests.vm.guest.units import tool

PORT: Final = 3260
"""Source: RFC 7143, 4.2.7.1."""

SIZE: Final = 16 << 20
"""Bytes of a disk."""


class Account(NamedTuple):
    """Who proves by CHAP to be who they say."""

    username: str
    password: str


class Offer(NamedTuple):
    """One target.

    Attributes:
        number: from 1, in the order in which they are offered.
        chap: what the initiator must know.
        mutual: what the target proves to know.
        disks: its disks, the first of which is number Targets.lun.
    """

    number: int
    iqn: str
    chap: Account | None
    mutual: Account | None
    disks: tuple[Path, ...]


class Targets(Machine, ABC):
    """A machine that offers iSCSI targets.

    Attributes:
        lun: the number of a target's first disk.
        told: of how many portals it tells who asks for its targets.
        portals: where it listens; to be changed only before it is started.
        serves: it has been started and not stopped.
    """

    lun: ClassVar[int]
    told: ClassVar[int]

    def __init__(self, number: int) -> None:
        """See Machine."""
        super().__init__(number)
        self.portals = [f"{self.address}:{PORT}", f"{self.second}:{PORT}"]
        self.serves = False
        self._offers: dict[str, Offer] = {}
        self._count = 0

    def uri(self, iqn: str) -> str:
        """Give the URI of a target at the first portal."""
        return f"iscsi://{self.address}/{iqn}"

    def offer(
        self, name: str, chap: Account | None = None, mutual: Account | None = None, disks: int = 1
    ) -> str:
        """Offer a target; gives its name."""
        self._count += 1
        iqn = f"iqn.2026-01.org.example.{self.name}:{name}"
        files = tuple(self.files / f"{self._count}-{one}" for one in range(disks))
        for file in files:
            file.touch()
            os.truncate(file, SIZE)
        offer = self._offers[iqn] = Offer(self._count, iqn, chap, mutual, files)
        self._add(offer)
        return iqn

    @property
    def offered(self) -> list[str]:
        """The names of its targets."""
        return list(self._offers)

    def disks(self, iqn: str) -> tuple[Path, ...]:
        """Give where what is written to a target's disks is in the guest."""
        return self._offers[iqn].disks

    def withdraw(self, iqn: str) -> None:
        """Offer a target no longer; whoever is logged in loses it."""
        self._remove(self._offers.pop(iqn))

    @abstractmethod
    def start(self) -> None:
        """Start to serve; returns when initiators are answered."""

    @abstractmethod
    def secure(self, account: Account) -> None:
        """Tell which targets there are only those who know this."""

    @abstractmethod
    def _add(self, offer: Offer) -> None: ...

    @abstractmethod
    def _remove(self, offer: Offer) -> None: ...


class Tgt(Targets):
    """By tgtd(8), a process on that machine."""

    lun = 1  # 0 is a controller
    told = 1  # the one that was asked

    def __init__(self, number: int = 20) -> None:
        """See Targets."""
        super().__init__(number)
        self._tgtd: subprocess.Popen[bytes] | None = None
        self._accounts: set[Account] = set()

    def start(self) -> None:
        """See Targets; nobody is answered before all targets are there."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.settimeout(DEADLINE)
            ready.bind(path := str(self.files / "notify"))
            argv = self.enter("tgtd", "--foreground", "--iscsi", f"portal=127.0.0.1:{PORT}")
            self._tgtd = subprocess.Popen(
                argv, env=os.environ | {"NOTIFY_SOCKET": path},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            ready.recv(4096)
            Path(path).unlink()
        self.serves = True
        self._accounts.clear()
        for offer in self._offers.values():
            self._add(offer)
        new = "--op new --mode portal --param portal"
        self._tgtadm(*(f"{new}={portal}" for portal in self.portals))

    def stop(self) -> None:
        """See Machine."""
        if self._tgtd:
            self.run("pkill", "-KILL", "-x", "tgtd")
            self._tgtd.wait(DEADLINE)
        self._tgtd, self.serves = None, False

    def secure(self, account: Account) -> None:
        """See Targets; a restart forgets it."""
        self._account(account, "")

    def _add(self, offer: Offer) -> None:
        if not self.serves:
            return
        tid = f"--tid {offer.number}"
        commands = [f"--op new --mode target {tid} --targetname {offer.iqn}"]
        for lun, disk in enumerate(offer.disks, self.lun):
            commands.append(f"--op new --mode logicalunit {tid} --lun {lun} --backing-store {disk}")
        self._tgtadm(*commands)
        if offer.chap:
            self._account(offer.chap, tid)
        if offer.mutual:
            self._account(offer.mutual, f"{tid} --outgoing")
        self._tgtadm(f"--op bind --mode target {tid} --initiator-address ALL")

    def _remove(self, offer: Offer) -> None:
        if self.serves:
            self._tgtadm(f"--op delete --force --mode target --tid {offer.number}")

    def _account(self, account: Account, where: str) -> None:
        user = f"--user {account.username}"
        if account not in self._accounts:
            self._accounts.add(account)
            self._tgtadm(f"--op new --mode account {user} --password {account.password}")
        self._tgtadm(f"--op bind --mode account {user} {where}")

    def _tgtadm(self, *commands: str) -> None:
        script = "\n".join(f"tgtadm --lld iscsi {one}" for one in commands)
        self.run("sh", "-e", "-s", text=script)


CONFIG: Final = Path("/sys/kernel/config/target")
FABRIC: Final = CONFIG / "iscsi"

ATTRIBUTES: Final = {"generate_node_acls": 1, "cache_dynamic_acls": 1, "demo_mode_write_protect": 0}
"""Whoever comes may read and write. Source: targetcli(8), attributes of an iSCSI portal group."""


class Lio(Targets):
    """By the kernel, set up as targetcli does: in configfs."""

    lun = 0
    told = 2

    def __init__(self, number: int = 21) -> None:
        """See Targets."""
        super().__init__(number)
        self._hba = CONFIG / "core" / f"fileio_{number}"

    def boot(self) -> None:
        """See Machine."""
        tool("modprobe", "--all", "target_core_file", "iscsi_target_mod")
        tool("systemctl", "start", "sys-kernel-config.mount")
        FABRIC.mkdir(exist_ok=True)
        self._hba.mkdir()

    def start(self) -> None:
        """See Targets."""
        self.serves = True
        self._open(*self._offers.values())

    def stop(self) -> None:
        """See Machine."""
        self.serves = False
        self._shut(*self._offers.values())

    def __exit__(self, *error: object) -> None:
        try:
            for iqn in list(self._offers):
                self.withdraw(iqn)
            self._hba.rmdir()
            _write(FABRIC / "discovery_auth", {"enforce_discovery_auth": 0})
        finally:
            super().__exit__(*error)

    def secure(self, account: Account) -> None:
        """See Targets."""
        place = FABRIC / "discovery_auth"
        _write(place, {**_auth(account), "enforce_discovery_auth": 1})

    def _add(self, offer: Offer) -> None:
        group = _group(offer)
        group.mkdir(parents=True)
        _write(group / "attrib", {**ATTRIBUTES, "authentication": int(bool(offer.chap))})
        if offer.chap:
            _write(group / "auth", _auth(offer.chap))
        if offer.mutual:
            _write(group / "auth", _auth(offer.mutual, "_mutual"))
        for lun, disk in enumerate(offer.disks, self.lun):
            store = self._hba / disk.name
            store.mkdir()
            (store / "control").write_text(f"fd_dev_name={disk},fd_dev_size={SIZE}")
            _write(store / "wwn", {"vpd_unit_serial": str(uuid.uuid4())})
            _write(store, {"enable": 1})
            (group / f"lun/lun_{lun}").mkdir()
            (group / f"lun/lun_{lun}/store").symlink_to(store)
        if self.serves:
            self._open(offer)

    def _remove(self, offer: Offer) -> None:
        self._shut(offer)
        group = _group(offer)
        for lun, disk in enumerate(offer.disks, self.lun):
            (group / f"lun/lun_{lun}/store").unlink()
            (group / f"lun/lun_{lun}").rmdir()
            (self._hba / disk.name).rmdir()
        group.rmdir()
        group.parent.rmdir()

    def _open(self, *offers: Offer) -> None:
        for offer in offers:
            _write(_group(offer), {"enable": 1})
        # A portal listens in the network of whoever makes it.
        places = [str(_group(offer) / "np" / one) for offer in offers for one in self.portals]
        if places:
            tool("nsenter", f"--net=/run/netns/{self.name}", "mkdir", *places)

    def _shut(self, *offers: Offer) -> None:
        for offer in offers:
            for portal in self.portals:
                with suppress(FileNotFoundError):
                    (_group(offer) / "np" / portal).rmdir()
        for offer in offers:
            if (_group(offer) / "enable").read_text().strip() == "1":
                _write(_group(offer), {"enable": 0})


def _group(offer: Offer) -> Path:
    return FABRIC / offer.iqn / "tpgt_1"


def _auth(account: Account, suffix: str = "") -> dict[str, str | int]:
    return {f"userid{suffix}": account.username, f"password{suffix}": account.password}


def _write(place: Path, values: dict[str, str | int]) -> None:
    for name, value in values.items():
        (place / name).write_text(str(value))  # an end of line would be part of a password
