# SPDX-License-Identifier: LGPL-2.1-or-later
"""Storage of every scheme, twice: what stays connected, and what comes and goes meanwhile.

SCHEMES is where a new scheme is added. What the kernel has of them all is told by `kernel()`, and
what else a connection leaves on this host by `traces()`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from storaged_conn.system.mountinfo import HOST, MountTable
from tests.mounts import make_image
from tests.vm.guest.initiator import records, sessions
from tests.vm.guest.machine import Machine
from tests.vm.guest.nvmet import Target, controllers, read, registered
from tests.vm.guest.storage import Server
from tests.vm.guest.targets import Account, Tgt
from tests.vm.guest.units import tool

POINTS: Final = Path("/mnt")
RUNTIME: Final = Path("/run/storaged-conn")
TRANSIENT: Final = Path("/run/systemd/transient")
"""Source: systemd.unit(5), Unit File Load Path."""

FILE: Final = "written"
"""What is written to, where it is a file system and not a disk."""


class Storage(NamedTuple):
    """What can be managed.

    Attributes:
        content: reads what was written to it where it is kept, once it is disconnected.
    """

    uri: str
    content: Callable[[], bytes]
    options: Mapping[str, object] = {}


class Pair(NamedTuple):
    """Two of one scheme: one to stay connected, one to come and go."""

    stays: Storage
    goes: Storage


def _nfs(stack: ExitStack, _: Path) -> Pair:
    server = stack.enter_context(Server(30))
    places = {path: server.export(path) for path in ("/stays", "/goes")}
    server.start()
    return Pair(
        *(
            Storage(f"nfs://{server.address}{path}", (place / FILE).read_bytes)
            for path, place in places.items()
        )
    )


def _iscsi(stack: ExitStack, _: Path) -> Pair:
    machine = stack.enter_context(Tgt(31))
    machine.start()
    account = Account("somebody", "twelve-or-more")
    iqns = machine.offer("stays"), machine.offer("goes", account)
    options = {"username": account.username, "password": account.password.encode()}
    stays, goes = (Storage(machine.uri(one), machine.disks(one)[0].read_bytes) for one in iqns)
    return Pair(stays, goes._replace(options=options))


def _ext4(_: ExitStack, top: Path) -> Pair:
    images = [make_image(top / f"{name}.img") for name in ("stays", "goes")]
    return Pair(*(Storage(f"posix+ext4:{one}", partial(_cat, one)) for one in images))


def _cat(image: Path) -> bytes:
    return tool("debugfs", "-R", f"cat /{FILE}", image).encode()


def _bind(_: ExitStack, top: Path) -> Pair:
    pair = []
    for name in ("stays", "goes"):
        (top / name).mkdir()
        options = {"mountpoint": str(POINTS / f"kills-{name}")}
        pair.append(Storage(f"file://{top}/{name}", (top / name / FILE).read_bytes, options))
    return Pair(*pair)


def _nvme(stack: ExitStack, _: Path) -> Pair:
    machine = stack.enter_context(Machine(32))
    target = stack.enter_context(Target())
    port = target.port(machine)
    pair = []
    for name in ("stays", "goes"):
        subsystem = target.subsystem(f"nqn.2026-01.org.example.srv32:{name}")
        port.serve(subsystem)
        (namespace,) = subsystem.namespaces()
        image = Path(read(namespace / "device_path"))
        pair.append(Storage(port.uri(subsystem), image.read_bytes))
    return Pair(*pair)


SCHEMES: Final[Mapping[str, Callable[[ExitStack, Path], Pair]]] = {
    "nfs": _nfs,
    "iscsi": _iscsi,
    "nvme+tcp": _nvme,
    "posix+ext4": _ext4,
    "file": _bind,
}
"""Each makes its storage in a directory, and closes with the stack."""


def where(found: Mapping[str, Any]) -> Path:
    """Give what to write to, from the properties of a connection."""
    point = found["MountPoint"]
    return Path(point, FILE) if point else Path(found["Devices"][0])


def kernel() -> dict[str, list[str]]:
    """Give what the kernel has, each with its number: more than one of them is one too many."""
    found = defaultdict(list)
    table = MountTable(HOST)
    table.refresh()
    assert table.mounts is not None
    for mount in table.mounts.values():
        if mount.target.startswith((f"{RUNTIME}/", f"{POINTS}/")):
            found[f"mount {mount.target}"].append(str(mount.id))
    for session in sessions():
        found[f"session {session.iqn} {session.portal}"].append(str(session.number))
    for controller, nqn in controllers().items():
        found[f"controller {nqn}"].append(controller)
    for line in tool("losetup", "--noheadings", "--output=BACK-FILE,NAME").splitlines():
        image, device = line.rsplit(maxsplit=1)
        found[f"loop {image}"].append(device)
    return dict(found)


def traces() -> set[str]:
    """Give what connections have on this host beside what the kernel has."""
    places = ("ours", "words", "mnt")
    files = {str(file) for place in places for file in (RUNTIME / place).glob("**")}
    files |= {str(file) for place in places[:2] for file in (RUNTIME / place).glob("**/*")}
    files |= {str(file) for file in TRANSIENT.glob("*storaged*")}
    files |= {str(file) for file in TRANSIENT.glob("mnt-*")}
    return files | records() | registered()
