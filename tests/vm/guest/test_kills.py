# SPDX-License-Identifier: LGPL-2.1-or-later
"""100 times kill -9 under load, with connections of every scheme.

Each scheme has one connection that two ids hold, to which is written all the while. Two more ids of
it are managed and unmanaged in turns: one holds that connection too, and one another one, which is
connected and disconnected. The kernel has what it had after every kill, and nothing twice; and when
there is rest, everything is as if there had been no kill.
"""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
import pytest_asyncio

from tests.caller import Caller, calling
from tests.live import DEADLINE
from tests.shell import show as say
from tests.stores import records
from tests.vm.guest.lives import Lives, lives
from tests.vm.guest.load import Churn, Writer, list_all, managed
from tests.vm.guest.schemes import SCHEMES, Pair, kernel, traces, where
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.units import SYSTEM_BUS, UNIT, show, start, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

PART: Final = 10
"""Kills of one test: it may take 180 s, and ten took 45 to 75 in an emulated machine."""

SEED: Final = 7

STARTING: Final = 4.0
SERVING: Final = 3.0
"""Seconds, at most, after which it is killed when it has begun to start, or to serve. An emulated
machine takes 4 for a start, and under this load up to 13."""

SOON: Final = "[Service]\nRestartSec=100ms\n"
"""In place of the unit's second, of which a hundred would be waited for."""

STORE: Final = Path("/var/lib/storaged-conn/connections.db")
GROUP: Final = Path("/sys/fs/cgroup/system.slice") / UNIT / "cgroup.procs"


class Load:
    """What is connected, and who works with it.

    Attributes:
        stays: what stays managed, by its ids.
    """

    def __init__(self, caller: Caller, other: Caller, pairs: Mapping[str, Pair]) -> None:
        self._caller, self._other = caller, other
        self._pairs = pairs
        self.stays = {
            f"{name} {number}": pair.stays for name, pair in pairs.items() for number in (1, 2)
        }
        self._churns = [
            Churn(caller, f"{name} {word}", storage)
            for name, pair in pairs.items()
            for word, storage in (("shared", pair.stays), ("alone", pair.goes))
        ]
        self._writers: dict[str, Writer] = {}
        self._writing: list[asyncio.Task[None]] = []
        self._full = threading.Event()

    async def connect(self) -> None:
        """Connect what stays, and begin to write to it."""
        self._before = kernel(), traces()
        for cid, storage in self.stays.items():
            await self._caller.manage(storage.uri, cid, **storage.options)
        for name in self._pairs:
            await connected(self._caller, f"{name} 2")
            path = where(await connected(self._caller, f"{name} 1"))
            if not path.exists():
                path.touch()
            writer = self._writers[name] = Writer(path)
            run = asyncio.to_thread(writer.run, self._full)
            self._writing.append(asyncio.create_task(run))
        self._kernel, self._traces = kernel(), traces()
        say(f"the kernel has {self._kernel}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have others manage, unmanage and list meanwhile."""
        stop = asyncio.Event()
        uris = {cid: storage.uri for cid, storage in self.stays.items()}
        async with asyncio.TaskGroup() as tasks:
            for churn in self._churns:
                tasks.create_task(churn.run(stop))
            tasks.create_task(list_all(self._other, uris, stop))
            try:
                yield
            finally:
                stop.set()

    def check(self) -> None:
        """See that what was connected is the same as ever, that nothing is twice, and I/O works."""
        found = kernel()
        assert found | self._kernel == found
        assert not [one for one in found.items() if len(one[1]) > 1]
        for one in self._writing:
            assert not one.done(), one.result()

    async def rest(self) -> None:
        """Let what comes and goes go, and see that nothing of it is left."""
        for churn in self._churns:
            while churn.managed:
                await churn.toggle()
        assert await managed(self._caller) == self.stays.keys()
        for pair in self._pairs.values():
            await self._caller.gone(pair.goes.uri)
        for cid in self.stays:
            assert (await connected(self._caller, cid))["Reconnects"] == 0
        until_equal(kernel, self._kernel)
        until_equal(traces, self._traces)
        until_equal(lambda: GROUP.read_text().split(), [show("MainPID")])
        assert not tool("systemctl", "--failed", "--plain", "--no-legend")
        self.check()
        self._tell()

    async def disconnect(self) -> None:
        """Unmanage all, and see that nothing is left but what was written."""
        self._full.set()
        await asyncio.gather(*self._writing)
        await leave(self._caller)
        until_equal(kernel, self._before[0])
        until_equal(traces, self._before[1])
        for name, pair in self._pairs.items():
            self._writers[name].check(pair.stays.content())

    async def close(self) -> None:
        """Stop whatever is still at work."""
        self._full.set()
        await asyncio.gather(*self._writing, return_exceptions=True)
        await leave(self._caller)

    def _tell(self) -> None:
        answers = sum(one.answers for one in self._churns)
        silences = sum(one.silences for one in self._churns)
        say(f"{answers} calls answered, {silences} not")
        for name, writer in self._writers.items():
            say(f"{name}: {writer.written} lines written, in {writer.slowest:.2f} s at most")


def until_equal(look: Callable[[], object], wanted: object) -> None:
    """Return when something is as wanted; no event tells it, so it is polled for."""
    end = time.monotonic() + DEADLINE
    while (found := look()) != wanted:
        if time.monotonic() > end:
            assert found == wanted
        time.sleep(0.05)


@pytest.fixture(scope="module")
def pairs() -> Iterator[dict[str, Pair]]:
    with TemporaryDirectory(dir="/var/lib/guest") as name, ExitStack() as stack:
        yield {scheme: make(stack, Path(name)) for scheme, make in SCHEMES.items()}


@pytest.fixture(scope="module")
def soon() -> Iterator[None]:
    place = Path(f"/run/systemd/system/{UNIT}.d/kills.conf")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(SOON)
    tool("systemctl", "daemon-reload")
    yield
    place.unlink()
    tool("systemctl", "daemon-reload")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(pairs: dict[str, Pair], soon: None) -> AsyncIterator[Load]:
    start()
    async with calling(SYSTEM_BUS) as caller, calling(SYSTEM_BUS) as other:
        load = Load(caller, other, pairs)
        try:
            await load.connect()
            yield load
        finally:
            await load.close()


async def kill(service: Lives, chance: random.Random) -> str:
    """Kill the service at a moment of its start, or some time after it."""
    await service.begins()
    starting = chance.random() < 1 / 2
    if not starting:
        await service.serves()
    pid = service.pid
    await asyncio.sleep(chance.uniform(0, STARTING if starting else SERVING))
    assert service.pid == pid, "it has ended by itself"
    served = service.owner
    service.end()
    os.kill(pid, signal.SIGKILL)
    return "serving" if served else "starting"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "part" in metafunc.fixturenames:
        metafunc.parametrize("part", range(metafunc.config.getoption("--kills") // PART))


async def test_kill_9_loses_nothing_and_doubles_nothing(load: Load, part: int) -> None:
    chance = random.Random(SEED + part)
    say(f"seed {SEED + part}")
    begun = time.monotonic()
    async with lives() as service:
        async with load.running():
            kills = []
            for _ in range(PART):
                kills.append(await kill(service, chance))
                load.check()
            await service.serves()
        await asyncio.to_thread(start)
        say(f"killed while {', '.join(kills)}, in {time.monotonic() - begun:.1f} s")
        await load.rest()


async def test_every_record_is_there_once_and_all_that_was_written(load: Load) -> None:
    await asyncio.to_thread(tool, "systemctl", "stop", UNIT)
    found = records(STORE)
    start()
    uris = {cid: storage.uri for cid, storage in load.stays.items()}
    assert {one.cid: one.uri for one in found} == uris
    assert len(found) == len(uris)
    await load.disconnect()
