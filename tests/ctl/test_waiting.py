# SPDX-License-Identifier: LGPL-2.1-or-later
"""manage --wait and wait, with the real service on a private bus."""

import asyncio
import json
import signal

import pytest

from storaged_conn.ctl.client import Client, Failure
from storaged_conn.ctl.waiting import Newcomer
from storaged_conn.ctl.watch import EVERYTHING, Added, Signals
from storaged_conn.names import object_path
from tests.ctl.program import Control, ended
from tests.live import DEADLINE, Daemon

pytestmark = pytest.mark.bus

NEVER = ("-o", "fail-first=1000000")
"""The storage never connects; the error is Unreachable."""


@pytest.fixture
async def signals(client: Client, service: Daemon) -> Signals:
    signals = Signals(client)
    await signals.follow(EVERYTHING)
    return signals


async def added(signals: Signals, cid: str) -> None:
    """Wait until a connection is there; others may come, whenever somebody mounts something."""
    async with asyncio.timeout(DEADLINE):
        while True:
            match await signals.next():
                case Added(path) if path == object_path(cid):
                    return


async def test_waiting_ends_when_it_is_connected(ctl: Control, service: Daemon) -> None:
    argv = ("simulated:a", "gold", "-o", "fail-first=1", "--wait")
    assert await ctl("manage", *argv) == (0, "gold: connected\n", "")


async def test_waiting_ends_when_it_has_failed(ctl: Control, service: Daemon) -> None:
    argv = ("simulated:a", "gold", "-o", "fail-with=Refused", *NEVER, "--wait=600")
    status, out, err = await ctl("manage", *argv)
    assert (status, out, err.count("\n")) == (1, "gold: failed\n", 1)
    assert "'gold' has failed (refused: simulated:a " in err


async def test_when_time_is_up_the_service_goes_on(ctl: Control, service: Daemon) -> None:
    status, out, err = await ctl("manage", "simulated:a", "gold", *NEVER, "--wait=0.2")
    assert (status, out, err.count("\n")) == (1, "gold: waiting\n", 1)
    assert "'gold' is waiting after 0.2 s (server-unreachable: simulated:a " in err
    assert err.endswith("the service goes on trying\n")
    assert (await ctl("show", "gold", "--json")).document["State"] in {"waiting", "connecting"}


async def test_programs_get_the_state_and_the_error(ctl: Control, service: Daemon) -> None:
    waited = await ctl("--json", "manage", "simulated:a", "x", *NEVER, "--wait=0.2")
    assert (waited.status, waited.document["State"]) == (1, "waiting")
    assert json.loads(waited.err)["error"] == "org.storage.Connection.Error.TimedOut"


async def test_waiting_ends_when_somebody_unmanages_it(
    ctl: Control, client: Client, signals: Signals
) -> None:
    async with ctl.started("manage", "simulated:a", "gold", *NEVER, "--wait=600") as process:
        await added(signals, "gold")
        await client.unmanage("gold")
        status, _, err = await ended(process)
    assert status == 1
    assert "unmanaged meanwhile" in err


async def test_waiting_goes_on_over_a_restart_of_the_service(
    service: Daemon, client: Client, signals: Signals
) -> None:
    path = await client.manage("simulated:a", "gold", {"latency-ms": ("x", 1000)})
    async with asyncio.TaskGroup() as tasks:
        settling = tasks.create_task(Newcomer(client, signals, path).settle(DEADLINE))
        await service.kill()
        await service.start()
    assert settling.result()["State"] == "connected"


async def test_waiting_for_a_service_that_stays_away_ends(
    service: Daemon, client: Client, signals: Signals
) -> None:
    path = await client.manage("simulated:a", "gold", {"latency-ms": ("x", 600_000)})
    await service.kill()
    with pytest.raises(Failure, match="the service has gone"):
        await Newcomer(client, signals, path).settle(0.5)


async def test_a_wait_returns_when_the_state_comes(
    ctl: Control, client: Client, service: Daemon
) -> None:
    await client.manage("simulated:a", "gold", {"latency-ms": ("x", 500)})
    assert await ctl("wait", "gold", "connected") == (0, "gold: connected\n", "")


async def test_an_interrupted_wait_dies_by_the_signal_without_a_traceback(
    ctl: Control, signals: Signals
) -> None:
    async with ctl.started("manage", "simulated:a", "gold", *NEVER, "--wait=600") as process:
        await added(signals, "gold")
        process.send_signal(signal.SIGINT)
        assert await ended(process) == (-signal.SIGINT, "", "")
