# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever one client does, the service lives, stays small, and serves the others."""

import asyncio
import json
import os
import socket
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from storaged_conn.core.model import Lifetime, Record
from storaged_conn.errors import ERROR_PREFIX, TroubleError
from storaged_conn.front.contract import load
from storaged_conn.front.faces import describe
from storaged_conn.front.objects import Objects
from storaged_conn.manager import Client, Manager
from storaged_conn.names import CONNECTION
from tests.broker import broker_bus
from tests.bus.wires import connected
from tests.caller import Caller, calling
from tests.fakes import FakeDriver, FakeStore
from tests.live import DEADLINE, Daemon, private_bus
from tests.stores import opened

pytestmark = pytest.mark.bus

TOP: Final = Path(__file__).parents[2]
LIMIT_EXCEEDED: Final = ERROR_PREFIX + "LimitExceeded"
NOT_AUTHORIZED: Final = ERROR_PREFIX + "NotAuthorized"
READ_ONLY: Final = "org.freedesktop.DBus.Error.PropertyReadOnly"

SERVED: Final = 0.1
"""Seconds within which others are served. Source: the issue Spine."""

WATCHDOG: Final = 0.2
"""Seconds between two signs of life, asked for by twice that; systemd gives 30 s."""

GROWTH: Final = 20 * 2**20
"""Bytes that the service may grow by, whatever is sent to it."""

MANY: Final = 1000
"""Connections of which List gives 170 kB, so that a client that does not read soon costs much."""


class Watched(Daemon):
    """A service that is asked for signs of life, whose pauses between them are remembered."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, env={"WATCHDOG_USEC": str(int(2e6 * WATCHDOG))})
        self.alive: list[float] = []

    def _receive(self, notify: socket.socket) -> None:
        super()._receive(notify)
        if self.notices[-1] == "WATCHDOG=1":
            self.alive.append(time.monotonic())

    async def signs(self, number: int) -> None:
        """Wait for so many more signs of life."""
        wanted = len(self.alive) + number
        async with asyncio.timeout(DEADLINE):
            while len(self.alive) < wanted:
                self._notified.clear()
                await self._notified.wait()

    def longest_silence(self) -> float:
        times = [*self.alive, time.monotonic()]
        return max(after - before for before, after in pairwise(times))

    def memory(self, line: str = "VmRSS") -> int:
        """Bytes that it has in memory, or had at most: VmHWM. Source: proc(5), /proc/PID/status."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (found,) = (one for one in status.splitlines() if one.startswith(line))
        return int(found.split()[1]) * 1024


class Hostile:
    """A client without manners; see tests/front/hostile.py."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def act(self) -> Any:
        """Have it do what it does."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        return json.loads(await self.line())

    async def line(self) -> str:
        assert self.process.stdout
        async with asyncio.timeout(DEADLINE):
            return (await self.process.stdout.readline()).decode().strip()

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def hostile(address: str, what: str, number: int) -> AsyncIterator[Hostile]:
    argv = (sys.executable, "-m", "tests.front.hostile", address, what, str(number))
    process = await asyncio.create_subprocess_exec(*argv, cwd=TOP, stdin=PIPE, stdout=PIPE)
    client = Hostile(process)
    try:
        assert await client.line() == "ready"
        yield client
    finally:
        await client.end()


@asynccontextmanager
async def served(address: str, tmp_path: Path) -> AsyncIterator[tuple[Watched, Caller]]:
    args = (address, tmp_path / "state", tmp_path / "run", "--enable-simulated")
    async with Watched(*args) as daemon, calling(address) as caller:
        yield daemon, caller


@pytest.fixture(params=[private_bus, broker_bus])
def address(request: pytest.FixtureRequest) -> Any:
    with request.param() as address:
        yield address


async def times_of(caller: Caller, acting: asyncio.Task[Any]) -> list[float]:
    """Ask again and again while somebody acts; returns the seconds that each answer took."""
    times = []
    while not acting.done():
        before = time.monotonic()
        await caller.listed()
        times.append(time.monotonic() - before)
        await asyncio.wait({acting}, timeout=0.005)
    return times


@pytest.mark.parametrize(
    ("what", "number", "answers"),
    [
        ("flood", 20_000, {LIMIT_EXCEEDED, ""}),
        ("ask", 10_000, {LIMIT_EXCEEDED, ""}),
        pytest.param(
            *("beg", 10_000, {LIMIT_EXCEEDED, NOT_AUTHORIZED}),
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become nobody"),
        ),
        ("signatures", 10_000, {READ_ONLY}),
    ],
)
async def test_while_one_client_floods_the_others_are_served(
    tmp_path: Path, what: str, number: int, answers: set[str]
) -> None:
    with private_bus() as address:
        async with (
            served(address, tmp_path) as (daemon, caller),
            hostile(address, what, number) as client,
        ):
            await caller.listed()
            before = daemon.memory()
            acting = asyncio.create_task(client.act())
            times = await times_of(caller, acting)
            result = acting.result()
            assert set(result if isinstance(result, dict) else [result]) <= answers
            assert statistics.median(times) < SERVED
            assert daemon.longest_silence() < 2
            assert daemon.memory("VmHWM") - before < GROWTH


@pytest.mark.parametrize("code", [11, 200])
async def test_an_unknown_header_field_harms_nobody(
    address: str, tmp_path: Path, code: int
) -> None:
    async with served(address, tmp_path) as (_, caller):
        async with hostile(address, "unknown_field", code) as client:
            assert await client.act() == ""
        assert await caller.managed() == {}


async def test_a_call_of_30_mib_is_refused_unread(address: str, tmp_path: Path) -> None:
    """Reading its 7.5 million variants would take a minute and a gigabyte."""
    async with (
        served(address, tmp_path) as (daemon, caller),
        hostile(address, "large", 30 * 2**20 // 4) as client,
    ):
        await caller.listed()
        before = daemon.memory()
        assert await client.act() == LIMIT_EXCEEDED
        assert daemon.longest_silence() < 2
        assert daemon.memory("VmHWM") - before < GROWTH
        assert await caller.managed() == {}


async def test_clients_that_never_read_are_not_kept_in_memory(address: str, tmp_path: Path) -> None:
    """All others get their replies, of any user; for those who do not read, nothing is kept here.

    dbus-daemon would keep 127 MiB, and then take no more from the service, so it is asked what it
    keeps, and they get no more replies when that is 1 MiB for each. dbus-broker keeps what it
    allows the user who does not read, 512 MiB, and throws away what goes beyond.
    """
    (tmp_path / "state").mkdir(0o700)
    async with opened(tmp_path / "state" / "connections.db") as store:
        many = (Record(f"c{number}", f"simulated:{number}") for number in range(MANY))
        await asyncio.gather(*map(store.add, many))
    async with served(address, tmp_path) as (daemon, caller):
        assert len(await caller.managed()) == MANY
        before = daemon.memory()
        async with hostile(address, "deaf", 5000) as client:
            assert not await client.act(), "somebody else was not answered any more"
            await daemon.signs(6)
            times = []
            for _ in range(20):
                before_call = time.monotonic()
                assert len(await caller.listed()) == MANY
                times.append(time.monotonic() - before_call)
            assert statistics.median(times) < SERVED
        assert len(await caller.managed()) == MANY
        assert daemon.memory("VmHWM") - before < 2 * GROWTH
        assert daemon.longest_silence() < 2


async def test_any_text_of_a_driver_reaches_the_bus_as_text() -> None:
    with private_bus() as address:
        async with (
            connected(address) as bus,
            calling(address) as caller,
            asyncio.TaskGroup() as tasks,
        ):
            await caller.bus.ask("AddMatch", "s", f"type='signal',sender='{bus.unique_name}'")
            driver = FakeDriver()
            driver.failures.append(TroubleError("NUL \0 and half a pair \ud800"))
            manager = Manager([driver], [], FakeStore(), tasks.create_task)

            def shown(cid: str) -> dict[str, object]:
                view = manager.view(cid)
                assert view
                return describe(view)

            objects = Objects(bus, load()[CONNECTION], shown)
            objects.announce()
            manager.listen(objects)
            await manager.manage("fake:a", "a", {}, Client(0, dict.fromkeys(Lifetime, "")))
            expected = "NUL \N{REPLACEMENT CHARACTER} and half a pair ?"
            await caller.hears_change("a", LastErrorMessage=expected)
            assert await bus.ask("GetId")
            manager.stop()
