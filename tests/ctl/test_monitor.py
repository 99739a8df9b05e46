# SPDX-License-Identifier: LGPL-2.1-or-later
"""monitor, with the real service on a private bus."""

import asyncio
import json
import os
import signal
from asyncio.subprocess import Process
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from storaged_conn.bus.wire import Field, Kind, Message, marshal
from storaged_conn.ctl.client import Client, open_client
from storaged_conn.ctl.watch import EVERYTHING, Added, Removed, Signal, Signals
from storaged_conn.names import CONNECTION, OBJECT_MANAGER, ROOT, object_path
from tests.ctl.program import Control, ended, line
from tests.live import DEADLINE, Daemon, private_bus

pytestmark = pytest.mark.bus

LATE = {"latency-ms": ("x", 200)}


async def event(process: Process) -> Any:
    return json.loads(await line(process))


async def until(process: Process, kind: str, state: str = "") -> Any:
    """Skip events up to one of a kind, and where one is given, with a new state."""
    while True:
        one = await event(process)
        if one["event"] == kind and state in {"", one["after"].get("State", "")}:
            return one


async def test_each_change_is_an_object_for_programs(
    ctl: Control, service: Daemon, client: Client
) -> None:
    await client.manage("simulated:a", "before", {})
    async with ctl.started("--json", "monitor") as process:
        first = await event(process)
        assert (first["event"], first["running"]) == ("service", True)
        await client.manage("simulated:b", "é", LATE)
        added = await event(process)
        assert (added["event"], added["ConnectionId"], added["before"]) == ("added", "é", {})
        assert (added["after"]["Uri"], added["after"]["State"]) == ("simulated:b", "connecting")
        changed = await until(process, "changed", "connected")
        assert (changed["ConnectionId"], changed["before"]["State"]) == ("é", "connecting")
        await client.unmanage("é")
        removed = await until(process, "removed")
        assert (removed["ConnectionId"], removed["after"]) == ("é", {})
        process.send_signal(signal.SIGTERM)
        result = await ended(process)
        assert (result.status, result.err) == (0, "")
        # what is still being disconnected is shown as unmanaged, if there was the time for it
        assert all("unmanaged/" in text for text in result.out.splitlines())


async def test_each_change_is_a_line_for_people(
    ctl: Control, service: Daemon, client: Client
) -> None:
    async with ctl.started("monitor") as process:
        assert (await line(process)).endswith("  service running")
        await client.manage("simulated:a", "gold\n", LATE)
        assert (await line(process)).endswith(r"  gold\n  added: connecting simulated:a")
        assert (await line(process)).endswith(r"  gold\n  State: connecting → connected")
        process.send_signal(signal.SIGINT)
        assert await ended(process) == (0, "", "")


async def test_the_service_may_go_and_come_back(
    ctl: Control, service: Daemon, client: Client
) -> None:
    await client.manage("simulated:a", "stays", {})
    await client.wait_for(object_path("stays"), "connected", DEADLINE)
    async with ctl.started("--json", "monitor") as process:
        await event(process)
        await service.kill()
        gone = await event(process)
        assert (gone["event"], gone["running"]) == ("service", False)
        await service.start()
        back = await event(process)
        assert (back["event"], back["running"]) == ("service", True)
        await client.manage("simulated:b", "new", {})
        added = await until(process, "added")
        assert added["ConnectionId"] == "new"


async def test_a_monitor_may_be_started_before_the_service(
    ctl: Control, bus: str, tmp_path: Path
) -> None:
    async with ctl.started("monitor") as process:
        assert (await line(process)).endswith("  service not running")
        async with Daemon(bus, tmp_path / "state", tmp_path / "run"):
            assert (await line(process)).endswith("  service back")
        assert (await line(process)).endswith("  service gone")


async def test_a_reader_that_goes_away_ends_it_without_a_further_change(
    ctl: Control, service: Daemon
) -> None:
    reader, writer = os.pipe()
    async with ctl.started("monitor", out=writer) as process:
        os.close(writer)
        assert b"service running" in await asyncio.to_thread(os.read, reader, 4096)
        os.close(reader)
        assert await ended(process) == (0, "", "")


async def test_the_end_of_the_bus_is_said() -> None:
    with ExitStack() as stack:
        address = stack.enter_context(private_bus())
        async with Control(address).started("monitor") as process:
            assert (await line(process)).endswith("  service not running")
            stack.close()
            status, _, err = await ended(process)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("storaged-connctl: the bus ")


async def test_what_others_send_us_is_not_the_service(
    bus: str, service: Daemon, client: Client
) -> None:
    await client.manage("simulated:a", "gold", {"latency-ms": ("x", 3_600_000)})
    signals = Signals(client)
    await signals.follow(EVERYTHING)
    fields: dict[int, Any] = {
        Field.PATH: ROOT,
        Field.INTERFACE: OBJECT_MANAGER,
        Field.MEMBER: "InterfacesRemoved",
        Field.DESTINATION: client.bus.unique_name,
        Field.SIGNATURE: "oas",
    }
    body = marshal("oas", [object_path("gold"), [CONNECTION]])
    async with open_client(bus) as liar:
        liar.bus.send(Message(Kind.SIGNAL, 1, 0, fields, body))
        await liar.bus.ask("GetId")  # the bus has passed the lie on
    await client.manage("simulated:b", "new", {})
    seen: list[Signal] = []
    async with asyncio.timeout(DEADLINE):
        while not seen or not isinstance(seen[-1], Added) or seen[-1].path != object_path("new"):
            seen.append(await signals.next())
    assert Removed(object_path("gold")) not in seen
