# SPDX-License-Identifier: LGPL-2.1-or-later
"""However the service ends, it ends soon, says why, and leaves nobody without an answer."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged_conn.names import DBUS, SERVICE
from tests.bus.wires import fake_bus, kill_bus
from tests.caller import Caller, calling, refused
from tests.live import DEADLINE, Daemon, private_bus

pytestmark = pytest.mark.bus

SOON = 2.0
"""Seconds for an end. Source: the issue Spine."""

CALLS = 20


@pytest.fixture
def address() -> Iterator[str]:
    with private_bus() as address:
        yield address


def service(address: str, tmp_path: Path, name: str = "") -> Daemon:
    directories = (tmp_path / f"state{name}", tmp_path / f"run{name}")
    return Daemon(address, *directories, "--enable-simulated")


async def begin_calls(caller: Caller) -> list[asyncio.Task[str]]:
    """Make calls that take for ever, and return when the service has taken them."""
    await caller.manage("simulated:slow", "slow", latency_ms=3_600_000)
    waits = [asyncio.create_task(caller.wait_for("slow", "connected")) for _ in range(CALLS)]
    await asyncio.sleep(0)  # they are sent
    await caller.listed()  # and served in this order
    return waits


async def test_sigterm_ends_it_soon_and_answers_who_waits(address: str, tmp_path: Path) -> None:
    async with service(address, tmp_path) as daemon, calling(address) as caller:
        waits = await begin_calls(caller)
        before = time.monotonic()
        assert await daemon.stop() == 0
        assert time.monotonic() - before < SOON
        for wait in waits:
            with refused("org.freedesktop.DBus.Error.NoReply") as refusal:
                await wait
            assert refusal.text == "the service is stopping; call again"
        assert "STOPPING=1" in daemon.notices
        assert "Traceback" not in daemon.log


async def test_when_the_bus_goes_it_ends_soon_and_says_so(address: str, tmp_path: Path) -> None:
    async with service(address, tmp_path) as daemon, calling(address) as caller:
        await begin_calls(caller)
        before = time.monotonic()
        await kill_bus(caller.bus)
        assert await daemon.wait() == 1
        assert time.monotonic() - before < SOON
        assert "the bus" in daemon.log.splitlines()[-1]
        assert "Traceback" not in daemon.log
        assert "never" not in daemon.log  # was awaited, was retrieved


async def test_a_second_service_says_that_the_name_is_taken(address: str, tmp_path: Path) -> None:
    async with service(address, tmp_path) as daemon, calling(address) as caller:
        second = service(address, tmp_path, "2")
        try:
            await second.spawn()
            assert await second.wait() == 1
            (line,) = [one for one in second.log.splitlines() if SERVICE in one]
            assert line == f"{SERVICE} is owned by another process; stop that service first"
            assert "Traceback" not in second.log
            assert "READY=1" not in second.notices
        finally:
            await second._cleanup()
        assert await caller.managed() == {}
        assert daemon.pid


async def test_without_a_bus_it_does_not_start_and_says_so(tmp_path: Path) -> None:
    daemon = service("unix:path=/nowhere/bus", tmp_path)
    try:
        await daemon.spawn()
        assert await daemon.wait() == 1
        assert "cannot connect to bus unix:path=/nowhere/bus: " in daemon.log
        assert "Traceback" not in daemon.log
    finally:
        await daemon._cleanup()


async def test_a_killed_service_is_missed_at_once_and_comes_back_as_it_was(
    address: str, tmp_path: Path
) -> None:
    async with service(address, tmp_path) as daemon, calling(address) as caller:
        waits = await begin_calls(caller)
        await daemon.kill()
        for wait in waits:
            with refused(f"{DBUS}.Error.NoReply"):
                await wait
        await daemon.start()
        assert list(await caller.managed()) == ["slow"]


async def test_sigterm_ends_it_soon_also_while_it_waits_for_a_silent_bus(tmp_path: Path) -> None:
    connected = asyncio.Event()

    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    async with fake_bus(tmp_path, stay_silent) as address:
        daemon = service(address, tmp_path)
        try:
            await daemon.spawn()
            async with asyncio.timeout(DEADLINE):
                await connected.wait()
            before = time.monotonic()
            assert await daemon.stop() == 0
            assert time.monotonic() - before < SOON
            assert "Traceback" not in daemon.log
        finally:
            await daemon._cleanup()
