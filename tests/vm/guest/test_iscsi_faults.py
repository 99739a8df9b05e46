# SPDX-License-Identifier: LGPL-2.1-or-later
"""iSCSI targets that die and come back, beside a session that iscsid alone looks after.

What the kernel says and when is from its own log. When the service knew it is StateSince.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final, NamedTuple

import pytest

from tests.caller import Caller
from tests.shell import show as say
from tests.vm.guest.initiator import (
    Trace,
    foreign,
    session,
    sessions,
    until_failed,
    until_logged_in,
)
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.targets import Lio, Targets, Tgt
from tests.vm.guest.units import tool

TOLD: Final = 0.1
"""Seconds from what the kernel has until the service says it."""

TURN: Final = 2.0
"""Seconds between two attempts of iscsid for a session, each in a rhythm of its own. Source:
open-iscsi usr/initiator.c, session_conn_reopen and time2wait."""

LISTED: Final = 1.0
"""Seconds; nothing may wait for iscsid, in an emulated machine."""

ISCSID: Final = "ISCSIADM_ABSTRACT_NAMESPACE"
"""Where iscsiadm finds iscsid. Source: open-iscsi usr/mgmt_ipc.h."""


class Loss(NamedTuple):
    """What happened to a session, by the clock of time.time().

    Attributes:
        failed, known: when the kernel knew that it is broken, and when the service did.
        back, alone: when it was logged in again, and when the other one was.
        connected: when the service knew.
    """

    failed: float
    known: float
    back: float
    alone: float
    connected: float

    def check(self, what: str, begun: float, ended: float) -> None:
        """Hold it to what is promised.

        Args:
            begun: when the fault was.
            ended: when it was undone.
        """
        say(
            f"{what}: the kernel knew after {self.failed - begun:.2f} s, unresponsive "
            f"{1000 * (self.known - self.failed):.0f} ms later; logged in "
            f"{self.back - ended:.2f} s after the end (iscsid alone {self.alone - ended:.2f} s), "
            f"connected {1000 * (self.connected - self.back):.0f} ms later"
        )
        assert self.known - self.failed < TOLD
        assert self.connected - self.back < TOLD
        assert self.back < self.alone + TURN


class Watched:
    """A connection and its trace, beside a session of somebody else's."""

    def __init__(self, client: Caller, trace: Trace, number: int, other: int) -> None:
        self.client = client
        self.trace = trace
        self.number = number
        self.other = other

    async def lost(self) -> float:
        """Return when the service says that it does not answer; gives since when it does."""
        found = await self.client.until("a", State="unresponsive")
        return float(found["StateSince"]) / 1e6

    async def back(self, begun: float, known: float) -> Loss:
        """Return when it is connected again."""
        found = await self.client.until("a", State="connected")
        assert session(found) == self.number
        assert found["Attempts"] == 1
        failed = self.trace.failed(self.number, begun)
        await asyncio.to_thread(until_logged_in, 2)
        back, alone = (self.trace.back(one, known) for one in (self.number, self.other))
        return Loss(failed, known, back, alone, float(found["StateSince"]) / 1e6)


@pytest.fixture
def other(machine: Targets) -> Iterator[int]:
    """Give the number of a session that nobody manages."""
    iqn = machine.offer("other")
    with foreign(iqn, machine.portals[0]) as number:
        yield number
    machine.withdraw(iqn)


async def test_a_killed_target_is_known_at_once_and_so_is_its_return(
    client: Caller, machine: Targets, iqn: str, other: int
) -> None:
    with Trace() as trace:
        await client.manage(machine.uri(iqn), "a")
        found = await connected(client, "a")
        watched = Watched(client, trace, session(found), other)
        begun = time.time()
        machine.stop()
        known = await watched.lost()
        machine.start()
        ended = time.time()
        loss = await watched.back(begun, known)
    loss.check("killed", begun, ended)
    tool("dd", f"of={found['Devices'][0]}", "conv=fsync", "status=none", text="after its return")
    assert machine.disks(iqn)[0].read_bytes().startswith(b"after its return")
    await leave(client)


async def test_a_silent_target_is_known_as_soon_as_the_kernel_knows(
    client: Caller, machine: Targets, iqn: str, other: int
) -> None:
    with Trace() as trace:
        await client.manage(machine.uri(iqn), "a")
        watched = Watched(client, trace, session(await connected(client, "a")), other)
        begun = time.time()
        machine.link(up=False)
        try:
            known = await watched.lost()
            await asyncio.to_thread(until_failed, 2)
        finally:
            machine.link(up=True)
        ended = time.time()
        loss = await watched.back(begun, known)
    loss.check("silent", begun, ended)
    await leave(client)


async def test_our_own_link_goes_and_comes(client: Caller, machine: Targets, iqn: str) -> None:
    await client.manage(machine.uri(iqn), "a")
    await connected(client, "a")
    machine.own_link(up=False)
    begun = time.time()
    try:
        found = await client.until("a", State="unresponsive")
        say(f"own link down: unresponsive after {found['StateSince'] / 1e6 - begun:.2f} s")
    finally:
        machine.own_link(up=True)
    begun = time.time()
    found = await connected(client, "a")
    say(f"own link up: connected after {found['StateSince'] / 1e6 - begun:.2f} s")


@pytest.mark.parametrize("machine", [Tgt], indirect=True)  # it takes a minute
async def test_a_session_that_does_not_come_back_is_given_up_and_made_anew(
    client: Caller, machine: Targets
) -> None:
    iqn = machine.offer("goes")
    await client.manage(machine.uri(iqn), "a", replacement_timeout=2)
    number = session(await connected(client, "a"))
    machine.withdraw(iqn)
    found = await client.until("a", State="unresponsive")
    begun = found["StateSince"] / 1e6
    with suppress(TimeoutError):
        await client.until("a", State="waiting", StateReason="not-found")
    found = await client.until("a", State="waiting", StateReason="not-found")
    say(f"given up after {found['StateSince'] / 1e6 - begun:.1f} s")
    assert not sessions()
    iqn = machine.offer("goes")
    await client.reconnect("a")
    assert session(await connected(client, "a")) > number
    await leave(client)
    machine.withdraw(iqn)


# iscsid

UNITS: Final = ("iscsid.socket", "iscsid.service")


@contextmanager
def stopped() -> Iterator[None]:
    """Have no iscsid, which iscsiadm would start where it may be started."""
    tool("systemctl", "mask", "--runtime", "--now", *UNITS)
    try:
        yield
    finally:
        tool("systemctl", "unmask", "--runtime", *UNITS)
        tool("systemctl", "start", *UNITS)


@contextmanager
def deaf() -> Iterator[None]:
    """Have an iscsid that takes every question and answers none, as one of another version may."""
    with stopped(), socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{ISCSID}")
        listening.listen()
        yield


@pytest.mark.parametrize(
    ("machine", "trouble"), [(Tgt, stopped), (Tgt, deaf), (Lio, stopped)], indirect=["machine"]
)
async def test_without_iscsid_it_says_so_and_recovers(
    client: Caller,
    machine: Targets,
    iqn: str,
    other: int,
    trouble: Callable[[], AbstractContextManager[None]],
) -> None:
    before = f"{machine.uri(iqn).rpartition(':')[0]}:other"
    await client.manage(before, "before")
    assert session(await connected(client, "before")) == other
    with trouble():
        begun = time.time()
        await client.manage(machine.uri(iqn), "a", login_timeout=1)
        found = await client.until("a", State="waiting", StateReason="initiator-down")
        say(f"known after {time.time() - begun:.1f} s: {found['LastErrorMessage']}")
        begun = time.time()
        assert (await client.properties("before"))["State"] == "connected"
        await client.unmanage("before")
        assert len(await client.listed()) == 2
        assert time.time() - begun < LISTED
        begun = time.time()
    await connected(client, "a")
    say(f"connected {time.time() - begun:.1f} s after iscsid was to start")
    await asyncio.to_thread(until_logged_in, 2)
    await leave(client)


async def test_what_is_lost_while_there_is_no_iscsid_comes_back_with_it(
    client: Caller, machine: Targets, iqn: str
) -> None:
    await client.manage(machine.uri(iqn), "a")
    await connected(client, "a")
    with stopped():
        machine.stop()
        await client.until("a", State="unresponsive")
        machine.start()
    await connected(client, "a")
    assert len(sessions()) == 1
