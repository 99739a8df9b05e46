# SPDX-License-Identifier: LGPL-2.1-or-later
"""GLib's GDBusObjectManagerClient, which udisks' clients and GNOME use, understands the service."""

import asyncio
import json
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from storaged_conn.names import CONNECTION, OBJECT_MANAGER, object_path
from tests.caller import Service, serving
from tests.live import DEADLINE

pytestmark = pytest.mark.bus

PYTHON = "/usr/bin/python3"
"""The one that Debian's python3-gi is for."""

CLIENT = Path(__file__).parent / "data" / "glib_client.py"


class Seen(NamedTuple):
    """What GLib has told its user; see tests/data/glib_client.py."""

    what: str
    path: str
    properties: dict[str, Any]


class Glib:
    """A running client."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def sees(self) -> Seen:
        """Give what it sees next."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            line = await self._process.stdout.readline()
        assert line, "the client has ended; see its error output"
        return Seen(*json.loads(line))

    async def sees_change(self, cid: str, when: Callable[[dict[str, Any]], object]) -> Seen:
        """Wait for a change of a connection; it may have been told in pieces."""
        while True:
            seen = await self.sees()
            assert (seen.what, seen.path) == ("changed", object_path(cid))
            if when(seen.properties):
                return seen


@asynccontextmanager
async def glib(service: Service) -> AsyncIterator[Glib]:
    argv = (PYTHON, str(CLIENT), service.address)
    env = os.environ | {"G_DEBUG": "fatal-warnings"}  # what GLib finds odd is an error here
    process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, env=env)
    try:
        yield Glib(process)
    finally:
        process.kill()
        await process.communicate()


async def test_glib_sees_connections_come_change_and_go(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, glib(service) as client:
        caller = service.caller
        assert (await client.sees()).what == "ready"

        await caller.manage("simulated:x", "ä 1", latency_ms=150)
        seen = await client.sees()
        assert seen[:2] == ("added", object_path("ä 1"))
        assert seen.properties["State"] == "connecting"
        assert set(seen.properties) == set(await caller.properties("ä 1"))
        seen = await client.sees_change("ä 1", lambda changes: "Connected" in changes)
        assert seen.properties["State"] == "connected"
        assert seen.properties["ConnectionInfo"] == {"name": "x", "latencyMs": 150}

        await caller.unmanage("ä 1")
        assert (await client.sees())[:2] == ("removed", object_path("ä 1"))


async def test_what_glib_caches_is_what_the_service_has(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        for cid in ("a", "b"):
            await service.caller.manage("simulated:x", cid)
            await service.caller.wait_for(cid, "connected")
        async with glib(service) as client:
            there = [await client.sees(), await client.sees()]
            assert (await client.sees()).what == "ready"
            (found,) = await service.caller.call("GetManagedObjects", interface=OBJECT_MANAGER)
            assert {one.path: {CONNECTION: one.properties} for one in there} == found


async def test_glib_follows_the_service_through_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        await service.caller.manage("simulated:x", "a")
        async with glib(service) as client:
            assert (await client.sees())[:2] == ("there", object_path("a"))
            assert (await client.sees()).what == "ready"
            await service.daemon.kill()
            assert (await client.sees())[:2] == ("removed", object_path("a"))
            await service.daemon.start()
            seen = await client.sees()
            assert seen[:2] == ("added", object_path("a"))
            if seen.properties["State"] != "connected":
                await client.sees_change("a", lambda changes: changes.get("State") == "connected")
