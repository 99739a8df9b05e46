# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happens to NVMe over TCP: times from the fault to the true state, beside the kernel alone.

The kernel alone is a controller that `nvme connect` made with its defaults, in the same run, to the
same machine: it tries every 10 s. Times of the service are those of its own clock (StateSince).
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.caller import Caller
from tests.shell import show as say
from tests.vm.guest.machine import Machine
from tests.vm.guest.nvmet import (
    Port,
    Subsystem,
    Target,
    controllers,
    fabrics,
    read,
    state,
    until_state,
)
from tests.vm.guest.steps import connected, leave, since
from tests.vm.guest.units import UNIT, owners, restarted, show, tool

NQN: Final = "nqn.2026-01.org.example:one"
ALONE: Final = "nqn.2026-01.org.example:alone"

SLOW: Final = 2.0
"""Seconds more than what is promised: the guest is emulated, some 20 times slower than its host."""

SILENT: Final = 4.5 + SLOW
NOTICED: Final = 0.5 + SLOW
ROUNDS: Final = 3
"""How long a return takes depends on where the kernel is between two attempts."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(101) as machine:
        yield machine


@pytest.fixture
def target(machine: Machine) -> Iterator[Target]:
    assert machine.name
    with Target() as target:
        yield target


@pytest.fixture
def one(target: Target) -> Subsystem:
    return target.subsystem(NQN)


@pytest.fixture
def port(target: Target, machine: Machine, one: Subsystem) -> Port:
    port = target.port(machine)
    port.serve(one)
    return port


@pytest.fixture
def alone(target: Target, port: Port) -> Iterator[str]:
    """Give the controller that the kernel keeps up alone, with its defaults."""
    port.serve(target.subsystem(ALONE))
    before = controllers()
    tool("nvme", "connect", "-t", "tcp", "-a", port.address, "-s", "4420", "-n", ALONE)
    (name,) = controllers().keys() - before.keys()
    yield name
    tool("nvme", "disconnect", "-n", ALONE)


@pytest.fixture
async def client(port: Port, caller: Caller) -> AsyncIterator[Caller]:
    """Give a client that leaves nothing connected, while the target is still there."""
    assert port.address
    yield caller
    await leave(caller)


async def manage(client: Caller, port: Port, one: Subsystem, **options: object) -> str:
    """Manage a subsystem as "a"; gives its controller's name when it is connected."""
    await client.manage(port.uri(one), "a", **options)
    return str((await connected(client, "a"))["ConnectionInfo"]["controller"])


@contextmanager
def silent(machine: Machine) -> Iterator[float]:
    """Cut a machine off behind its switch; gives when that was."""
    begun = time.time()
    machine.link(up=False)
    try:
        yield begun
    finally:
        machine.link(up=True)


def compare(what: str, ours: list[float], alone: list[float]) -> None:
    """Print both, and see that ours are a quarter of the others at most, all in all."""
    for name, times in (("ours", ours), ("the kernel's defaults", alone)):
        say(f"{what}, {name}: {', '.join(f'{one:.2f}' for one in times)} s")
    say(f"{what}: ratio {sum(ours) / sum(alone):.2f}")
    assert sum(ours) <= sum(alone) / 4


async def test_a_silent_server_is_noticed_and_its_return_used_sooner_than_by_the_kernel_alone(
    client: Caller, port: Port, one: Subsystem, alone: str
) -> None:
    name = await manage(client, port, one)
    ours, others = [], []
    for _ in range(ROUNDS):
        with silent(port.machine) as begun:
            assert await since(client, "a", begun, "unresponsive") < SILENT
            for controller in (name, alone):
                await until_state(controller, "connecting")
            back = time.time()
        live = asyncio.create_task(until_state(alone, "live"))
        ours.append(await since(client, "a", back, "connected"))
        others.append(await live - back)
    compare("silence, the return", ours, others)
    assert (await client.properties("a"))["Attempts"] == 1


async def test_a_port_that_goes_and_comes_is_noticed_at_once(
    client: Caller, port: Port, one: Subsystem, target: Target, alone: str
) -> None:
    name = await manage(client, port, one)
    both = [one, next(sub for sub in target.subsystems if sub.nqn == ALONE)]
    ours, others = [], []
    for _ in range(ROUNDS):
        begun = time.time()
        port.withdraw(*both)
        assert await since(client, "a", begun, "unresponsive") < NOTICED
        for controller in (name, alone):
            await until_state(controller, "connecting")
        await asyncio.sleep(1.5)  # the first attempts are refused
        back = time.time()
        port.serve(*both)
        live = asyncio.create_task(until_state(alone, "live"))
        ours.append(await since(client, "a", back, "connected"))
        others.append(await live - back)
    compare("the port's return", ours, others)


async def test_our_own_link_goes_and_comes(
    client: Caller, port: Port, one: Subsystem, alone: str
) -> None:
    name = await manage(client, port, one)
    ours, others = [], []
    for _ in range(2):
        begun = time.time()
        port.machine.own_link(up=False)
        try:
            assert await since(client, "a", begun, "unresponsive") < NOTICED
            for controller in (name, alone):
                await until_state(controller, "connecting")
        finally:
            back = time.time()
            port.machine.own_link(up=True)
        live = asyncio.create_task(until_state(alone, "live"))
        ours.append(await since(client, "a", back, "connected"))
        others.append(await live - back)
    compare("own link, the return", ours, others)


async def test_a_short_silence_needs_no_new_connection(
    client: Caller, port: Port, one: Subsystem
) -> None:
    name = await manage(client, port, one)
    with silent(port.machine) as begun:
        assert await since(client, "a", begun, "unresponsive") < SILENT
    assert await since(client, "a", time.time(), "connected") < 3 + SLOW
    assert controllers() == {name: NQN}


async def test_a_subsystem_that_leaves_a_port_which_stays_is_found_at_the_next_look(
    client: Caller, port: Port, one: Subsystem, alone: str
) -> None:
    name = await manage(client, port, one)
    port.withdraw(one)
    # Of the first the kernel tells nobody; since Linux 6.9 it goes, as the subsystem says "never".
    await until_state(name, "connecting", "")
    async with owners() as changes:
        await asyncio.to_thread(tool, "systemctl", "restart", UNIT)
        await restarted(changes)
    await client.until("a", Connected=False)
    assert state(alone) == "live"
    back = time.time()
    port.serve(one)
    await since(client, "a", back, "connected")


async def test_what_the_kernel_gives_up_is_connected_as_soon_as_the_server_answers(
    client: Caller, port: Port, one: Subsystem
) -> None:
    host = read(Path("/etc/nvme/hostnqn"))
    identity = read(Path("/etc/nvme/hostid"))
    line = f"transport=tcp,traddr={port.address},trsvcid=4420,nqn={NQN},hostnqn={host}"
    name = fabrics(f"{line},hostid={identity},ctrl_loss_tmo=3,reconnect_delay=1")
    assert await manage(client, port, one) == name
    port.withdraw(one)
    await until_state(name, "")
    await client.until("a", State="waiting", StateReason="server-refused")
    back = time.time()
    port.serve(one)
    assert await since(client, "a", back, "connected") < 1 + SLOW
    assert (await client.properties("a"))["ConnectionInfo"]["owner"] == "storaged-conn"


async def test_a_server_that_comes_later_is_connected_then(
    client: Caller, port: Port, one: Subsystem
) -> None:
    port.withdraw(one)
    await client.manage(port.uri(one), "a")
    await client.until("a", State="waiting", StateReason="server-refused")
    back = time.time()
    port.serve(one)
    assert await since(client, "a", back, "connected") < 1 + SLOW


async def test_dead_servers_hold_up_nothing_and_go_when_unmanaged(
    client: Caller, port: Port, one: Subsystem
) -> None:
    await manage(client, port, one)
    with silent(port.machine):
        await client.until("a", State="unresponsive")
        begun = time.monotonic()
        for _ in range(10):
            await client.listed()
        assert time.monotonic() - begun < 10 * 0.2
        await client.unmanage("a")
        await client.gone(port.uri(one))
        say(f"unmanaged while silent: gone after {time.monotonic() - begun:.1f} s")
    assert not controllers()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_controller_and_its_users_outlive_the_service(
    client: Caller, port: Port, one: Subsystem, number: signal.Signals
) -> None:
    await client.manage(port.uri(one), "b")
    name = await manage(client, port, one)
    (device,) = (await connected(client, "a"))["Devices"]
    stop = asyncio.Event()
    writing = asyncio.create_task(asyncio.to_thread(write_until, device, stop))
    try:
        async with owners() as changes:
            if number == signal.SIGKILL:
                os.kill(int(show("MainPID")), number)
            else:
                await asyncio.to_thread(tool, "systemctl", "restart", UNIT)
            await restarted(changes)
        for cid in ("a", "b"):
            info = (await connected(client, cid))["ConnectionInfo"]
            assert (info["controller"], info["owner"]) == (name, "storaged-conn")
    finally:
        stop.set()
    assert await writing > 0
    assert controllers() == {name: NQN}
    await leave(client)
    assert not controllers()


async def test_a_disconnect_never_overtakes_a_connect(
    client: Caller, port: Port, one: Subsystem
) -> None:
    for _ in range(3):
        await client.manage(port.uri(one), "a")
        await client.unmanage("a")
        await client.gone(port.uri(one))
        assert not controllers()


def write_until(device: str, stop: asyncio.Event) -> int:
    """Write, and have it on the server's disk, until told to stop; gives how often."""
    written = 0
    with open(device, "r+b", buffering=0) as disk:
        while not stop.is_set():
            disk.seek(0)
            disk.write(os.urandom(4096))
            os.fsync(disk.fileno())
            written += 1
    return written
