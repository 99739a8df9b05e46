# SPDX-License-Identifier: LGPL-2.1-or-later
"""A world for the NFS driver: servers that go and come, a table for a kernel, and verdicts."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from storaged_conn.core.model import Topic
from storaged_conn.drivers.health import Health
from storaged_conn.drivers.nfs import NfsDriver
from storaged_conn.errors import AttemptError, UnreachableError
from storaged_conn.system.mountinfo import Mount, MountTable
from storaged_conn.system.mounting import Place
from storaged_conn.system.probe import Verdict
from storaged_conn.system.sentinel import Address
from storaged_conn.system.servers import Servers

ROOT: Final = "1 0 254:0 / / rw - ext4 /dev/vda1 rw"

SUPER: Final = "rw,vers=4.2,hard,proto=tcp,timeo=600,retrans=2,sec=sys,addr=10.9.0.2"


def line(number: int, target: str, source: str, *, flags: str = "rw", shown: str = SUPER) -> str:
    """Write a line of the table."""
    place, what = target.replace(" ", "\\040"), source.replace(" ", "\\040")
    return f"{number} 1 0:{number} / {place} {flags} shared:1 - nfs4 {what} {shown}"


class FakeServers(Servers):
    """Servers that a test stops and starts.

    Attributes:
        failures: why those are down that are.
        address: at which all others answer.
    """

    def __init__(self) -> None:
        self.listeners = []
        self.failures: dict[Address, AttemptError] = {}
        self.address = "127.0.0.1"
        self.reached: list[Address] = []

    def failure(self, address: Address) -> AttemptError | None:
        return self.failures.get(address)

    @asynccontextmanager
    async def reach(self, address: Address, *, holds: bool = True) -> AsyncIterator[str]:
        self.reached.append(address)
        if address in self.failures:
            raise self.failures[address]
        yield self.address

    def go_down(self, address: Address) -> None:
        self.failures[address] = UnreachableError(f"{address.text} does not answer; see server")
        self._tell_all(address)

    def come_back(self, address: Address) -> None:
        self.failures.pop(address, None)
        self._tell_all(address)

    def _tell_all(self, address: Address) -> None:
        for listener in self.listeners:
            listener(address)


class FakeHealth(Health):
    """Gives the verdicts that a test says, and otherwise that all is well."""

    def __init__(self, servers: FakeServers) -> None:
        super().__init__(servers, self.spawn)
        self.verdicts: deque[Verdict | None] = deque()
        self.asked: list[Mount] = []

    def spawn(self, doing: Coroutine[object, object, None]) -> None:
        doing.close()
        raise AssertionError("nothing is started here")

    async def ask(self, mount: Mount, server: Address, topic: Topic) -> Verdict | None:
        self.asked.append(mount)
        if self.is_down(server):
            return Verdict.SILENT
        return self.verdicts.popleft() if self.verdicts else Verdict.ANSWERS


class FakeMounter:
    """Mounts by writing into the table.

    Attributes:
        done: what was asked for.
        failures: what the next calls raise.
        held: what is done takes effect, and does not end before this is set.
    """

    def __init__(self, world: "World") -> None:
        self.done: list[tuple[str, ...]] = []
        self.failures: deque[AttemptError] = deque()
        self.held = asyncio.Event()
        self.held.set()
        self.begun = asyncio.Event()
        self._world = world

    async def mount(self, source: str, fstype: str, options: Sequence[str], place: Place) -> None:
        self.done.append(("mount", source, fstype, *options))
        self._fail()
        flags = ("ro" if "ro" in options else "rw") + ",nosuid,nodev"
        self._world.add(line(self._world.number(), place.target, source, flags=flags))

    async def bind(self, source: str, place: Place, *, read_only: bool) -> None:
        raise AssertionError("nfs is not bound")

    async def unmount(self, place: Place, mount_id: int) -> None:
        self.done.append(("unmount",))
        self.begun.set()
        await self.held.wait()
        self._fail()
        self._world.drop(place.target)

    async def detach(self, place: Place) -> None:
        self.done.append(("detach",))
        self._world.drop(place.target)
        self._world.table.refresh()
        await self.held.wait()

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.popleft()


class World:
    """All of it."""

    def __init__(self, ground: Path, *lines: str) -> None:
        self._file = ground / "table"
        self._ground = ground
        self._lines = [ROOT, *lines]
        self._write()
        self.table = MountTable(self._file)
        self.table.refresh()
        self.servers = FakeServers()
        self.health = FakeHealth(self.servers)
        self.mounter = FakeMounter(self)
        (ground / "root").mkdir(exist_ok=True)
        self.driver = self.start()
        self.nfs = Address("", 0)

    def start(self) -> NfsDriver:
        """Start the driver, as after a restart."""
        roots = [self._ground / "root"]
        return NfsDriver(self.table, self._ground / "run", roots, self.mounter, self.health)

    @property
    def point(self) -> str:
        """Give what may be a mountpoint."""
        return str(self._ground / "root/point")

    def number(self) -> int:
        """Give a number that no mount has had."""
        return 100 + len(self.mounter.done)

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._write()

    def drop(self, target: str) -> None:
        self._lines = [one for one in self._lines if one.split(" ")[4] != target]
        self._write()

    def mounted(self) -> list[str]:
        """Give the sources of what is mounted."""
        self.table.refresh()
        mounts = (self.table.mounts or {}).values()
        return [mount.source for mount in mounts if mount.fstype == "nfs4"]

    def _write(self) -> None:
        self._file.write_text("".join(f"{line}\n" for line in self._lines))
