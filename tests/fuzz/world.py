# SPDX-License-Identifier: LGPL-2.1-or-later
"""The drivers without a kernel, on a table that may be anything, for hostile input."""

import os
import re
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from storaged_conn.bus.systemd import unit_name
from storaged_conn.core.model import Record, Target
from storaged_conn.drivers.file import FileDriver
from storaged_conn.drivers.health import Health
from storaged_conn.drivers.iscsi import IscsiDriver
from storaged_conn.drivers.iscsi_recovery import Recovery
from storaged_conn.drivers.iscsi_view import SessionView
from storaged_conn.drivers.mount import MountDriver
from storaged_conn.drivers.nfs import NfsDriver
from storaged_conn.drivers.nvme import NvmeDriver
from storaged_conn.drivers.nvme_registry import Registry
from storaged_conn.drivers.nvme_table import Table
from storaged_conn.drivers.posix import PosixDriver
from storaged_conn.drivers.simulated import SimulatedDriver
from storaged_conn.errors import RefusedError
from storaged_conn.manager import Manager
from storaged_conn.system.iscsi import Sessions
from storaged_conn.system.iscsi_nodes import Nodes
from storaged_conn.system.iscsiadm import Iscsiadm
from storaged_conn.system.mountinfo import MountTable
from storaged_conn.system.mounting import FORCED, Place
from storaged_conn.system.nvme import Controllers
from tests.drivers.nfs_world import FakeServers

ROOT: Final = Path("/srv/root")


FORBIDDEN: Final = re.compile(
    r"(suid|dev|exec|user|users|owner|group|loop|remount|move|bind|rbind|rw"
    r"|(uhelper|helper|cred|credentials|pass|password|pass2|addr|mounthost|x-.*)=.*)$",
    re.IGNORECASE,
)
"""The options that nobody but us, or nobody at all, gives to mount(8)."""


class Told(NamedTuple):
    """What mount(8) would be told."""

    source: str
    fstype: str
    options: tuple[str, ...]
    place: Place


class Recorder:
    """A Mounter that only remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    async def mount(self, source: str, fstype: str, options: Sequence[str], place: Place) -> None:
        self.told.append(Told(source, fstype, (*options, *FORCED), place))

    async def bind(self, source: str, place: Place, *, read_only: bool) -> None:
        self.told.append(Told(source, "", (*(["ro"] if read_only else []), *FORCED), place))

    async def unmount(self, place: Place, mount_id: int) -> None:
        """Forget nothing."""

    async def detach(self, place: Place) -> None:
        """Forget nothing."""


class Unkept:
    """Records that nobody keeps."""

    async def add(self, record: Record) -> None:
        """Forget it."""

    async def remove(self, cid: str) -> None:
        """Forget it."""

    async def replace(self, cid: str, record: Record) -> None:
        """Forget it."""


class World:
    """All drivers and their manager, on a table of mounts that is a file.

    Attributes:
        directory: for files of a test.
        path: of the table.
        signatures: of all options of all drivers.
    """

    def __init__(self) -> None:
        self._kept = tempfile.TemporaryDirectory(prefix="storaged-world-")
        self.directory = Path(self._kept.name)
        self.path = self.directory / "mountinfo"
        self.path.write_text("1 0 254:0 / / rw - ext4 /dev/vda1 rw\n")
        self.table = MountTable(self.path)
        self.table.refresh()
        self.mounter = Recorder()
        servers = FakeServers()
        common = (self.table, self.directory / "run", [ROOT], self.mounter)
        health = Health(servers, start_nothing)
        self.mounts = [FileDriver(*common), PosixDriver(*common), NfsDriver(*common, health)]
        others = [SimulatedDriver(servers), self.iscsi(servers), self.nvme(servers)]
        drivers = [*self.mounts, *others]
        self.manager = Manager(drivers, (), Unkept(), start_nothing)
        self.signatures: dict[str, str] = {}
        for known in self.manager.option_table().values():
            self.signatures |= known

    def iscsi(self, servers: FakeServers) -> IscsiDriver:
        """Make the driver of sessions, on nothing."""
        iscsiadm = Iscsiadm("/nonexistent/iscsiadm")
        nodes = Nodes(iscsiadm, config=self.directory, locks=self.directory)
        view = SessionView(Sessions(self.directory, self.directory), nodes, self.table)
        recovery = Recovery(servers, start_nothing)
        return IscsiDriver(view, iscsiadm, nodes, servers, recovery)

    def nvme(self, servers: FakeServers) -> NvmeDriver:
        """Make the driver of controllers, on nothing."""
        controllers = Controllers(self.directory, self.directory, self.directory)
        registry = Registry(self.directory / "registry")
        table = Table(controllers, registry, servers, self.directory / "plans")
        return NvmeDriver(table, self.table, servers, start_nothing)

    def mounted(self, target: Target) -> Told | None:
        """Give what mount(8) would be told for a target, or None where nothing is mounted."""
        driver = self.manager._driver(target.uri)
        if not isinstance(driver, MountDriver):
            return None
        if isinstance(driver, FileDriver) and not target.option("mountpoint"):
            return None
        self.mounter.told.clear()
        place = driver.place(target)
        if isinstance(driver, NfsDriver):
            run_through(driver._mount(target, place, "192.0.2.1"))
        else:
            run_through(driver.attach(target, place))
        (told,) = self.mounter.told
        return told


def check_told(told: Told | None) -> None:
    """See that mount(8) takes each part for what it is, and that ours are the last words."""
    if told is None:
        return
    line = [told.fstype, *told.options, told.source, told.place.root, told.place.path]
    assert not any("\0" in one or "\n" in one for one in line)
    assert not told.source.startswith("-")
    assert re.fullmatch(r"[a-z0-9][a-z0-9._+-]*|", told.fstype)
    assert told.options[-2:] == FORCED
    for option in told.options:
        assert re.fullmatch(r"[A-Za-z0-9_.:][A-Za-z0-9_.:-]*(=[^,\s\\\"'=%]*)?", option), option
        assert not FORBIDDEN.match(option), option
    assert not {"", ".", ".."} & set(told.place.path.split("/"))
    with suppress(RefusedError):
        assert re.fullmatch(r"[A-Za-z0-9:_.\\-]+\.mount", unit_name(told.place.target))
    os.fsencode("".join(line))


def run_through(doing: Coroutine[object, object, object]) -> None:
    """Run what waits for nothing to its end, without an event loop."""
    try:
        doing.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")


def start_nothing(doing: Coroutine[object, object, None]) -> NoReturn:
    """Refuse: there is no event loop."""
    doing.close()
    raise AssertionError("nothing is started here")
