# SPDX-License-Identifier: LGPL-2.1-or-later
"""NVMe subsystems of another machine, served over TCP by the kernel's own target, nvmet.

    with Machine(100) as machine, Target() as target:
        subsystem = target.subsystem(NQN)          # with one namespace of SIZE bytes
        port = target.port(machine)                # nvme+tcp://10.9.100.2
        port.serve(subsystem)                      # nvme+tcp://10.9.100.2/NQN
        port.withdraw(subsystem)                   # its connections are closed

A port listens while it serves something. Its socket is in the network namespace of the process that
makes the link, which must see configfs, so that `ip netns exec` does not do. Source:
drivers/nvme/target/configfs.c; drivers/nvme/target/tcp.c, nvmet_tcp_add_port.
"""

import asyncio
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self
from uuid import uuid4

from tests.live import DEADLINE
from tests.vm.guest.machine import Machine
from tests.vm.guest.units import tool

CONFIG: Final = Path("/sys/kernel/config/nvmet")

SIZE: Final = 16 << 20
"""Bytes of a namespace."""


class Subsystem:
    """Some namespaces under one name."""

    def __init__(self, nqn: str, top: Path) -> None:
        """Make it, for every host and without a namespace."""
        self.nqn = nqn
        self.path = CONFIG / "subsystems" / nqn
        self._top = top
        self.path.mkdir()
        self.allow_all(yes=True)

    def add(self, number: int) -> str:
        """Add a namespace; gives its UUID."""
        image = self._top / f"{self.nqn.replace(':', '-')}-{number}"
        with image.open("wb") as file:
            file.truncate(SIZE)
        uuid = str(uuid4())
        namespace = self.path / "namespaces" / str(number)
        namespace.mkdir()
        (namespace / "device_path").write_text(str(image))
        (namespace / "device_uuid").write_text(uuid)
        (namespace / "enable").write_text("1")
        return uuid

    def namespaces(self) -> list[Path]:
        """Give the namespaces, in the order of their numbers."""
        return sorted((self.path / "namespaces").iterdir(), key=lambda one: int(one.name))

    def remove(self, number: int) -> None:
        """Take a namespace away."""
        namespace = self.path / "namespaces" / str(number)
        (namespace / "enable").write_text("0")
        namespace.rmdir()

    def allow_all(self, *, yes: bool) -> None:
        """Let every host in, or only those that are named."""
        (self.path / "attr_allow_any_host").write_text(str(int(yes)))

    def allow(self, host_nqn: str, key: str = "") -> None:
        """Let one host in, with a DH-HMAC-CHAP key or without."""
        host = CONFIG / "hosts" / host_nqn
        if not host.exists():
            host.mkdir()
        if key:
            (host / "dhchap_key").write_text(key)
        (self.path / "allowed_hosts" / host_nqn).symlink_to(host)

    def close(self) -> None:
        """Remove it; nothing serves it any more."""
        for link in (self.path / "allowed_hosts").iterdir():
            link.unlink()
        for namespace in self.namespaces():
            self.remove(int(namespace.name))
        self.path.rmdir()


class Port:
    """An address of a machine at which subsystems are served."""

    def __init__(self, number: int, machine: Machine, address: str, service: int) -> None:
        """Describe it; nothing listens yet."""
        self.machine = machine
        self.address, self.service = address, service
        self.path = CONFIG / "ports" / str(number)
        self.path.mkdir()
        for name, value in (
            ("addr_trtype", "tcp"),
            ("addr_adrfam", "ipv6" if ":" in address else "ipv4"),
            ("addr_traddr", address),
            ("addr_trsvcid", str(service)),
        ):
            (self.path / name).write_text(value)

    def secure(self) -> None:
        """Let in nobody without TLS, from the next `serve` on."""
        (self.path / "addr_tsas").write_text("tls1.3")

    def uri(self, subsystem: Subsystem) -> str:
        """Write where a subsystem is."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        where = host if self.service == 4420 else f"{host}:{self.service}"
        return f"nvme+tcp://{where}/{subsystem.nqn}"

    def serve(self, *subsystems: Subsystem) -> None:
        """Serve subsystems from now on."""
        enter = ("nsenter", f"--net=/run/netns/{self.machine.name}")
        paths = [str(one.path) for one in subsystems]
        tool(*enter, "ln", "-s", *paths, "-t", str(self.path / "subsystems"))

    def withdraw(self, *subsystems: Subsystem) -> None:
        """Serve them no longer: their connections are closed."""
        for one in subsystems:
            (self.path / "subsystems" / one.nqn).unlink()

    def refer(self, name: str, address: str, service: int) -> None:
        """Have its discovery name another discovery service."""
        referral = self.path / "referrals" / name
        referral.mkdir()
        for key, value in (
            ("addr_trtype", "tcp"),
            ("addr_adrfam", "ipv4"),
            ("addr_traddr", address),
            ("addr_trsvcid", str(service)),
            ("enable", "1"),
        ):
            (referral / key).write_text(value)

    def close(self) -> None:
        """Remove it."""
        for link in (self.path / "subsystems").iterdir():
            link.unlink()
        for referral in (self.path / "referrals").iterdir():
            referral.rmdir()
        self.path.rmdir()


class Target:
    """All that nvmet serves; a context manager."""

    def __enter__(self) -> Self:
        tool("modprobe", "--all", "nvmet", "nvmet-tcp", "nvme-tcp")
        self._top = Path(tempfile.mkdtemp(prefix="nvmet-", dir="/var/lib/guest"))
        self.subsystems: list[Subsystem] = []
        self._ports: list[Port] = []
        return self

    def __exit__(self, *_: object) -> None:
        for port in self._ports:
            port.close()
        for subsystem in self.subsystems:
            subsystem.close()
        for host in (CONFIG / "hosts").iterdir():
            host.rmdir()
        shutil.rmtree(self._top)

    def subsystem(self, nqn: str, namespaces: int = 1) -> Subsystem:
        """Make a subsystem."""
        made = Subsystem(nqn, self._top)
        self.subsystems.append(made)
        for number in range(1, namespaces + 1):
            made.add(number)
        return made

    def port(self, machine: Machine, service: int = 4420, address: str = "") -> Port:
        """Make a port of a machine, at its first address or at another."""
        numbers = {int(one.name) for one in (CONFIG / "ports").iterdir()}
        number = next(number for number in range(1, 1000) if number not in numbers)
        made = Port(number, machine, address or machine.address, service)
        self._ports.append(made)
        return made


# the client's side


def controllers() -> dict[str, str]:
    """Give the subsystems that this host is connected to over a fabric, by their controllers."""
    found = {}
    for path in Path("/sys/class/nvme").glob("nvme*"):
        with suppress(OSError):  # it goes just now
            if (path / "transport").read_text().strip() == "tcp":
                found[path.name] = (path / "subsysnqn").read_text().strip()
    return found


def registered() -> set[str]:
    """Name the controllers that somebody has claimed."""
    registry = Path("/run/nvme/registry")
    return {one.name for one in registry.iterdir()} if registry.exists() else set()


def read(path: Path) -> str:
    """Read an attribute."""
    return path.read_text().strip()


def write(path: Path, text: str) -> None:
    """Write an attribute."""
    path.write_text(text)


def state(controller: str) -> str:
    """Read the kernel's word for how a controller is, empty where it is gone."""
    try:
        return Path("/sys/class/nvme", controller, "state").read_text().strip()
    except OSError:
        return ""


async def until_state(controller: str, *wanted: str) -> float:
    """Return when the kernel says so, which sends no event; gives the time."""
    return await asyncio.to_thread(_poll_state, controller, wanted)


def _poll_state(controller: str, wanted: tuple[str, ...]) -> float:
    deadline = time.time() + DEADLINE
    while state(controller) not in wanted:
        assert time.time() < deadline, f"{controller} is {state(controller)}, not {wanted}"
        time.sleep(0.01)
    return time.time()


def fabrics(line: str) -> str:
    """Connect as root does without us; gives the controller's name."""
    device = os.open("/dev/nvme-fabrics", os.O_RDWR)
    try:
        os.write(device, line.encode())
        answer = os.read(device, 100).decode()
    finally:
        os.close(device)
    return f"nvme{re.findall('[0-9]+', answer)[0]}"
