# SPDX-License-Identifier: LGPL-2.1-or-later
"""Suspend and resume as logind tells of them: dbusmock plays it, and others try to."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus
from storaged_conn.bus.wire import Field, Flag, Kind, Message
from storaged_conn.core.model import Topic
from storaged_conn.names import DBUS
from storaged_conn.sources import sleep
from storaged_conn.sources.sleep import LOGIND, SleepSource
from tests.bus.wires import connected
from tests.caller import Caller, serving
from tests.live import DEADLINE, private_bus
from tests.sources.looks import Looks
from tests.system.ports import Port

pytestmark = pytest.mark.bus

PATH = "/org/freedesktop/login1"
MANAGER = f"{LOGIND}.Manager"
SIGNAL = "PrepareForSleep"


class Logind:
    """A logind that does as it is told."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def sleeps(self) -> None:
        await self.says(value=True)

    async def wakes_up(self) -> None:
        await self.says(value=False)

    async def says(self, value: object, signature: str = "b", member: str = SIGNAL) -> None:
        """Send a signal to all."""
        arguments = [wire.variant(signature, value)]
        where = (LOGIND, PATH, "org.freedesktop.DBus.Mock", "EmitSignal")
        body = (MANAGER, member, signature, arguments)
        await self._bus.call(where, "sssav", body, timeout=DEADLINE)


@asynccontextmanager
async def logind(address: str) -> AsyncIterator[Logind]:
    argv = ["/usr/bin/python3", "-m", "dbusmock", "--template", "logind"]
    env = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": address}
    async with connected(address) as bus:
        owned = asyncio.Event()
        bus.listen(lambda _: owned.set())
        rule = f"type='signal',sender='{DBUS}',member='NameOwnerChanged',arg0='{LOGIND}'"
        await bus.ask("AddMatch", "s", rule)
        owned.clear()  # of what the bus says when somebody comes
        process = await asyncio.create_subprocess_exec(*argv, env=env, stdout=subprocess.DEVNULL)
        try:
            await asyncio.wait_for(owned.wait(), DEADLINE)
            yield Logind(bus)
        finally:
            process.kill()
            await process.wait()


class World(Looks):
    """A source, and what it said.

    Attributes:
        order: `pause`, `resume` and `resync` as they came.
    """

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.source = SleepSource(bus, lambda work: self.tasks.append(asyncio.create_task(work)))
        self.source.pause = lambda: self.hear("pause")
        self.source.resume = lambda: self.hear("resume")
        self.source.start(self, lambda: self.hear("resync"))

    def hear(self, what: str) -> None:
        self.order.append(what)
        self.resync()

    async def heard_all(self, *wanted: str) -> None:
        await self.until(lambda: len(self.order) >= len(wanted))
        assert self.order == list(wanted)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with private_bus() as address:
        yield address


@pytest.fixture
async def world(address: str) -> AsyncIterator[World]:
    async with connected(address) as bus:
        world = World(bus)
        await bus.ask("GetId")  # the match rule is there
        yield world
        world.source.close()


def forged(destination: str = "", *, value: bool) -> Message:
    """Give a signal that only logind should send, to one or to all."""
    fields: dict[int, object] = {Field.PATH: PATH, Field.INTERFACE: MANAGER, Field.MEMBER: SIGNAL}
    fields[Field.SIGNATURE] = "b"
    if destination:
        fields[Field.DESTINATION] = destination
    return Message(Kind.SIGNAL, Flag.NO_REPLY_EXPECTED, 0, fields, wire.marshal("b", [value]))


async def test_the_service_rests_before_a_sleep_and_looks_at_everything_after_it(
    address: str, world: World
) -> None:
    async with logind(address) as host:
        for _ in range(2):
            world.order.clear()
            await host.sleeps()
            await world.heard_all("pause")
            await host.wakes_up()
            await world.heard_all("pause", "resume", "resync")


async def test_signals_keep_their_order(address: str, world: World) -> None:
    async with logind(address) as host:
        for _ in range(10):
            await host.sleeps()
            await host.wakes_up()
        await world.heard_all(*["pause", "resume", "resync"] * 10)


async def test_only_logind_is_believed(address: str, world: World) -> None:
    async with connected(address) as liar:
        for _ in range(50):
            liar.send(forged(world.source._bus.unique_name, value=True))
            liar.send(forged(value=True))
        await liar.ask("GetId")  # all were delivered
        async with logind(address) as host:
            liar.send(forged(world.source._bus.unique_name, value=False))
            await liar.ask("GetId")
            await host.sleeps()
            await world.heard_all("pause")
    assert len(world.tasks) == 1  # nobody else costs more than a look


async def test_a_liar_is_not_believed_though_all_is_heard(address: str, world: World) -> None:
    await world.source._bus.ask("AddMatch", "s", "type='signal'")
    async with connected(address) as liar, logind(address) as host:
        liar.send(forged(value=True))
        await liar.ask("GetId")
        await host.wakes_up()
        await world.heard_all("resume", "resync")


async def test_what_else_logind_says_does_not_matter(address: str, world: World) -> None:
    async with logind(address) as host:
        await host.says("yes", "s")
        await host.says(value=True, member="PrepareForShutdown")
        await host.wakes_up()
        await world.heard_all("resume", "resync")


async def test_a_sleep_whose_end_nobody_tells_ends_by_itself(
    address: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleep, "LONGEST_PAUSE", 0.05)
    async with logind(address) as host:
        await host.sleeps()
        await world.heard_all("pause", "resume", "resync")


async def test_a_sleep_that_has_ended_does_not_end_again(address: str, world: World) -> None:
    async with logind(address) as host:
        await host.sleeps()
        await host.sleeps()
        await host.wakes_up()
        await world.heard_all("pause", "pause", "resume", "resync")
        assert world.source._timer is None


async def test_a_closed_source_says_nothing(address: str, world: World) -> None:
    world.source.watch(Topic("server", "nas:1"))
    world.source.unwatch(Topic("server", "nas:1"))
    async with logind(address) as host:
        await host.sleeps()
        await world.heard_all("pause")
        world.source.close()
        assert world.source._timer is None
        await host.wakes_up()
        await world.source._bus.ask("GetId")
        await asyncio.gather(*world.tasks)
    assert world.order == ["pause"]


# the whole service


async def fail(caller: Caller, cid: str, times: int) -> None:
    """Have a connection fail so often that its next attempt is far away."""
    for attempt in range(1, times + 1):
        await caller.until(cid, State="waiting", Attempts=attempt)
        if attempt < times:
            await caller.reconnect(cid)


async def test_a_host_that_sleeps_tries_nothing_and_then_everything_at_once(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as service, logind(service.address) as host:
        caller = service.caller
        await caller.manage("simulated:late", "late", fail_first=8)
        await fail(caller, "late", 8)
        await host.sleeps()
        await caller.manage("simulated:new", "new")
        await caller.manage("simulated:never", "never")
        await caller.unmanage("never")
        await caller.reconnect("late")
        for _ in range(5):
            states = {cid: one["State"] for cid, one in (await caller.managed()).items()}
            assert states == {"late": "connecting", "new": "connecting"}
        await host.wakes_up()
        await caller.until("late", State="connected", Attempts=9)
        await caller.until("new", State="connected", Attempts=1)


async def test_what_waits_long_is_tried_right_after_a_sleep(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as service,
        logind(service.address) as host,
        Port() as port,
    ):
        caller = service.caller
        await caller.manage(f"simulated://{port.address.text}/a", "on a server")
        await caller.until("on a server", State="connected")
        await caller.manage("simulated:late", "late", fail_first=8)
        await caller.manage("simulated:wrong", "wrong", fail_first=1, fail_with="Refused")
        await fail(caller, "late", 8)
        await caller.until("wrong", State="failed")
        began = asyncio.get_running_loop().time()
        await host.sleeps()
        await host.wakes_up()
        await caller.until("late", State="connected", Attempts=9)
        await caller.until("wrong", State="connected", Attempts=2)
        assert asyncio.get_running_loop().time() - began < 20  # 30 s and more without the sleep
        await port.has_accepted(2)
        await caller.until("on a server", State="connected", Reconnects=0)
