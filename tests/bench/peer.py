# SPDX-License-Identifier: LGPL-2.1-or-later
"""The C programs of peer.c, built and run."""

import asyncio
import subprocess
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from storaged_conn.names import MANAGER, OBJECT_MANAGER, ROOT
from tests.live import DEADLINE

SOURCES: Final = [Path(__file__).with_name(f"{name}.c") for name in ("peer", "serve", "watch")]


class Call(NamedTuple):
    """A call without or with one string argument."""

    name: str
    interface: str
    member: str
    argument: str | None = None

    def argv(self) -> list[str]:
        """Write it as `peer time` wants it."""
        argument = [] if self.argument is None else ["s", self.argument]
        return [ROOT, self.interface, self.member, *argument]


GET_CONNECTION: Final = Call("GetConnection", MANAGER, "GetConnection", "c00000")
LIST: Final = Call("List", MANAGER, "List")
GET_MANAGED_OBJECTS: Final = Call("GetManagedObjects", OBJECT_MANAGER, "GetManagedObjects")


@dataclass(frozen=True)
class Peer:
    """The program, and the bus that it works on."""

    program: Path
    address: str

    async def time(self, destination: str, call: Call, entries: int, count: int) -> list[float]:
        """Make calls from C.

        Args:
            entries: how many each reply must have at least: the host may have connections too.

        Returns:
            Milliseconds of each.
        """
        process = await self._start("time", destination, *call.argv(), str(count))
        async with asyncio.timeout(DEADLINE):
            printed, _ = await process.communicate()
        lines = [line.split() for line in printed.decode().splitlines()]
        if len(lines) != count or any(int(found) < entries for _, found in lines):
            raise RuntimeError(f"{destination} did not answer {call.name} with its entries")
        return [float(microseconds) / 1000 for microseconds, _ in lines]

    @asynccontextmanager
    async def serve(self, name: str, count: int, info: list[str]) -> AsyncIterator[None]:
        """Run the C service with as many connections, c00000 and on.

        Args:
            info: the entries of ConnectionInfo, as peer.c wants them.
        """
        process = await self._start("serve", name, str(count), *info)
        try:
            await _read(process, "ready")
            yield
        finally:
            process.kill()
            await process.communicate()

    @asynccontextmanager
    async def watch(self, name: str, count: int) -> AsyncIterator["Watch"]:
        """Look for a service that is to come, with as many connections, c00000 and on."""
        process = await self._start("watch", name, str(count))
        try:
            await _read(process, "watching")
            yield Watch(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def _start(self, *argv: str) -> Process:
        # only asyncio.subprocess starts it from the main thread, whose end would end it
        env = {"DBUS_SYSTEM_BUS_ADDRESS": self.address}
        return await asyncio.create_subprocess_exec(self.program, *argv, env=env, stdout=PIPE)


@dataclass(frozen=True)
class Watch:
    """A `peer watch` at work."""

    process: Process

    async def times(self) -> tuple[float, float, float]:
        """Wait for the service.

        Returns:
            When it had its name, all objects, and all connected: monotonic seconds.
        """
        named, published, connected = [
            float(await _read(self.process, what)) / 1e6
            for what in ("named", "published", "connected")
        ]
        return named, published, connected


async def _read(process: Process, what: str) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        line = (await process.stdout.readline()).decode()
    word, _, rest = line.strip().partition(" ")
    if word != what:
        raise RuntimeError(f"peer said {line!r} where {what!r} was to come")
    return rest


@contextmanager
def build_peer(address: str) -> Iterator[Peer]:
    """Compile the C programs for a bus."""
    with tempfile.TemporaryDirectory(prefix="storaged-peer-") as name:
        program = Path(name, "peer")
        libsystemd = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "libsystemd"],
            check=True, capture_output=True, text=True, timeout=DEADLINE,
        ).stdout.split()  # fmt: skip
        argv = ["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-o", str(program)]
        subprocess.run([*argv, *SOURCES, *libsystemd], check=True, timeout=DEADLINE)
        yield Peer(program, address)
