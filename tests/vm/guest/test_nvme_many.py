# SPDX-License-Identifier: LGPL-2.1-or-later
"""64 subsystems at once, in two halves: a test may take 180 s, and the guest is emulated."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

import pytest

from tests.caller import Caller, calling
from tests.shell import show as say
from tests.vm.guest.machine import Machine
from tests.vm.guest.nvmet import Port, Subsystem, Target, controllers
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.units import SYSTEM_BUS, start

NQN: Final = "nqn.2026-01.org.example:many"
HALF: Final = 32


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(103) as machine:
        yield machine


@pytest.fixture(scope="module")
def target(machine: Machine) -> Iterator[Target]:
    assert machine.name
    with Target() as target:
        yield target


@pytest.fixture(scope="module")
def port(target: Target, machine: Machine) -> Port:
    """Give what serves all of them."""
    port = target.port(machine)
    port.serve(*(target.subsystem(f"{NQN}-{number}") for number in range(2 * HALF)))
    return port


@pytest.fixture
async def client() -> AsyncIterator[Caller]:
    """Give a client of the service; what it manages stays for the next test."""
    start()
    async with calling(SYSTEM_BUS) as caller:
        yield caller


async def connect(client: Caller, port: Port, subsystems: Sequence[Subsystem]) -> None:
    begun = time.monotonic()
    for subsystem in subsystems:
        await client.manage(port.uri(subsystem), subsystem.nqn)
    for subsystem in subsystems:
        found = await connected(client, subsystem.nqn)
        assert len(found["Devices"]) == 1
        assert found["Attempts"] == 1
    say(f"{len(subsystems)} more subsystems: {time.monotonic() - begun:.1f} s")


async def test_one_half_is_connected_at_once(client: Caller, port: Port, target: Target) -> None:
    await connect(client, port, target.subsystems[:HALF])
    assert len(controllers()) == HALF


async def test_the_other_half_is_connected_at_once(
    client: Caller, port: Port, target: Target
) -> None:
    await connect(client, port, target.subsystems[HALF:])
    assert len(controllers()) == 2 * HALF


async def test_all_of_them_go(client: Caller, port: Port) -> None:
    begun = time.monotonic()
    assert port.address
    await leave(client)
    say(f"{2 * HALF} subsystems disconnected: {time.monotonic() - begun:.1f} s")
    assert not controllers()
