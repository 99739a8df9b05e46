# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storaged_conn.core.model import Lifetime
from storaged_conn.front.call import Call
from storaged_conn.front.callers import Caller, Callers
from storaged_conn.front.faces import LONGEST_WAIT, ConnectionFace
from storaged_conn.front.waits import Waits
from storaged_conn.manager import Client, Manager
from storaged_conn.names import CONNECTION, object_path
from tests.caller import Service, calling, given, refused, serving
from tests.fakes import FakeDriver, FakeStore
from tests.live import DEADLINE, private_bus

STATES = {"waiting", "connecting", "connected", "unresponsive", "disconnecting", "failed"}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as service:
        yield service


@pytest.mark.bus
async def test_waiting_ends_at_once_or_when_the_state_comes(service: Service) -> None:
    await service.caller.manage("simulated:slow", "slow", latency_ms=200)
    assert await service.caller.wait_for("slow", "connected") == "connected"
    assert await service.caller.wait_for("slow", "connected", usec=1) == "connected"
    await service.caller.manage("simulated:no", "no", fail_first=1000, fail_with="Refused")
    assert await service.caller.wait_for("no", "failed") == "failed"


@pytest.mark.bus
async def test_a_wait_that_takes_too_long_says_where_the_connection_is(service: Service) -> None:
    await service.caller.manage("simulated:a", "a")
    await service.caller.wait_for("a", "connected")
    with refused("TimedOut") as refusal:
        await service.caller.wait_for("a", "unresponsive", usec=20_000)
    text = "not unresponsive within 0.02 s but connected; it is still being worked on"
    assert refusal.text == text


@pytest.mark.bus
async def test_waiting_for_what_goes_away_ends_with_it(service: Service) -> None:
    await service.caller.manage("simulated:a", "a")
    waiting, leaving = service.caller.wait_for("a", "failed"), service.caller.unmanage("a")
    with refused("NotFound") as refusal:
        await asyncio.gather(waiting, leaving)  # sent, and so taken, in this order
    assert "connection_id 'a'" in refusal.text


@pytest.mark.bus
async def test_there_are_six_states_to_wait_for_and_no_options(service: Service) -> None:
    await service.caller.manage("simulated:a", "a")
    for state in ("", "Connected", "gone"):
        with refused("InvalidArgument") as refusal:
            await service.caller.wait_for("a", state)
        assert refusal.text.startswith(f"state {state!r} is none of ")
        assert set(refusal.text.partition(" of ")[2].split(", ")) == STATES
    where = {"path": object_path("a"), "interface": CONNECTION}
    with refused("InvalidArgument") as refusal:
        await service.caller.call("WaitFor", "sta{sv}", "failed", 0, given({"soon": True}), **where)
    assert "'soon'" in refusal.text


@pytest.mark.bus
async def test_those_who_wait_are_watched_together_and_no_longer_than_they_wait(
    service: Service,
) -> None:
    idle = await service.caller.match_rules()
    await service.caller.manage("simulated:a", "a", latency_ms=500)
    async with calling(service.address) as guest:
        waits = [guest.wait_for("a", "connected") for _ in range(10)]
        waits += [service.caller.wait_for("a", "connected") for _ in range(10)]
        assert await asyncio.gather(*waits) == ["connected"] * 20
    assert await service.caller.match_rules() == idle


@pytest.mark.bus
async def test_a_wait_is_dropped_with_its_caller() -> None:
    with private_bus() as address:
        async with calling(address) as own, asyncio.TaskGroup() as tasks:
            driver, callers = FakeDriver(), Callers(own.bus)
            manager = Manager([driver], [], FakeStore(), tasks.create_task)
            waits = Waits(manager, callers)
            await manager.manage("fake:a", "a", {}, Client(0, dict.fromkeys(Lifetime, "")))
            async with calling(address) as guest:
                sender = guest.bus.unique_name
                wait = tasks.create_task(waits.wait("a", "failed", LONGEST_WAIT, sender))
                await asyncio.sleep(0)  # it runs as far as it can
                assert await callers.is_here(sender)  # the bus has taken what it sent
            await asyncio.wait([wait], timeout=DEADLINE)
            assert wait.cancelled()
            assert (waits._waiting, callers._watched) == ({}, {})
            late = tasks.create_task(waits.wait("a", "failed", LONGEST_WAIT, sender))
            await asyncio.wait([late], timeout=DEADLINE)
            assert late.cancelled()  # it had left before we began to watch


class Listening(Waits):
    """Notes how long it is to wait."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def wait(self, cid: str, state: str, seconds: float, sender: str) -> None:
        self.seconds.append(seconds)


async def test_an_hour_is_the_longest_wait_and_what_zero_means() -> None:
    waits = Listening()
    async with asyncio.TaskGroup() as tasks:
        face = ConnectionFace(Manager([], [], FakeStore(), tasks.create_task), waits)
        call = Call(Caller(":1.1", 0), object_path("a"))
        for usec in (0, 1, 5_000_000, 3_600_000_000, 3_600_000_001, 2**64 - 1):
            await face.WaitFor(call, "failed", usec, {})
    assert waits.seconds == [3600, 1e-6, 5, 3600, 3600, 3600]
