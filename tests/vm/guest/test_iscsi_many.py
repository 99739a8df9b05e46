# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fifty targets at one portal, beside what iscsiadm needs for them."""

import asyncio
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.caller import Caller
from tests.shell import show as say
from tests.vm.guest.initiator import iscsiadm, logged_in, records, sessions
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.targets import Lio, Targets, Tgt
from tests.vm.guest.units import show, tool

MANY: Final = 50

TIMES: Final = {Tgt: 2.0, Lio: 3.0}
"""Less than so many times what iscsiadm takes until all devices are there, which it does not wait
for, and `connected` does. It was 1.4 and 1.7 times; a busy machine takes its part of that."""


@pytest.fixture(scope="module", params=[Tgt, Lio])
def machine(request: pytest.FixtureRequest) -> Iterator[Targets]:
    with request.param() as machine:
        del machine.portals[1:]
        for number in range(MANY):
            machine.offer(f"disk-{number}")
        machine.start()
        yield machine


@pytest.fixture(scope="module")
def by_hand(machine: Targets) -> Iterator[float]:
    """Log in as root does without us; gives the seconds until all devices were there."""
    portal = f"--portal={machine.address}"
    iscsiadm("--mode=discovery", "--type=sendtargets", portal)
    begun = time.monotonic()
    iscsiadm("--mode=node", "--login")
    seconds = time.monotonic() - begun
    assert len(logged_in()) == MANY
    tool("udevadm", "settle")
    ready = time.monotonic() - begun
    say(f"iscsiadm: {seconds:.1f} s, and all devices after {ready:.1f} s")
    yield ready
    if records():  # no test has
        log_out(machine)


def log_out(machine: Targets) -> None:
    begun = time.monotonic()
    iscsiadm("--mode=node", "--logout")
    say(f"iscsiadm: logged out after {time.monotonic() - begun:.1f} s")
    iscsiadm("--mode=node", "--op=delete")
    of = ("--type=sendtargets", f"--portal={machine.address}")
    iscsiadm("--mode=discoverydb", *of, "--op=delete")


async def test_what_root_has_logged_in_is_listed(
    caller: Caller, machine: Targets, by_hand: float
) -> None:
    pid = show("MainPID")
    for iqn in machine.offered:
        await caller.unmanaged(machine.uri(iqn), State="connected")
    log_out(machine)
    for iqn in machine.offered:
        await caller.gone(machine.uri(iqn))
    assert not sessions()
    assert by_hand
    assert show("MainPID") == pid


async def test_many_targets_are_connected_at_once(
    caller: Caller, machine: Targets, by_hand: float
) -> None:
    pid = show("MainPID")
    begun = time.time()
    async with asyncio.TaskGroup() as tasks:
        for number, iqn in enumerate(machine.offered):
            tasks.create_task(caller.manage(machine.uri(iqn), f"many {number}"))
    managed = time.time() - begun
    times = []
    for number in range(MANY):
        found = await connected(caller, f"many {number}")
        times.append(float(found["StateSince"]) / 1e6 - begun)
    say(f"managed after {managed:.1f} s, connected after {min(times):.1f} to {max(times):.1f} s")
    assert len(sessions()) == len(logged_in()) == MANY
    begun = time.time()
    await leave(caller)
    say(f"all logged out after {time.time() - begun:.1f} s")
    assert max(times) < TIMES[type(machine)] * by_hand
    assert not sessions()
    assert not records()
    assert show("MainPID") == pid
