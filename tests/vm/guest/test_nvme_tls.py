# SPDX-License-Identifier: LGPL-2.1-or-later
"""NVMe over TCP with TLS: keys of the kernel's keyring, handshakes by tlshd(8) on both sides.

A kernel without it (Debian 12's) must say so, and never connect without TLS.
"""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.caller import Caller, given
from tests.vm.guest.machine import Machine
from tests.vm.guest.nvmet import Port, Subsystem, Target, controllers, read
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.units import tool

NQN: Final = "nqn.2026-01.org.example:tls"

ABLE: Final = "CONFIG_NVME_TCP_TLS=y" in Path("/boot", f"config-{os.uname().release}").read_text()


@contextmanager
def handshaking(*enter: str) -> Iterator[None]:
    """Run tlshd in a network namespace, which is where the kernel asks for handshakes."""
    process = subprocess.Popen((*enter, "tlshd", "--stderr"))
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(104) as machine:
        yield machine


@pytest.fixture
def subsystem(machine: Machine) -> Iterator[tuple[Port, Subsystem]]:
    """Serve a subsystem with TLS, if this kernel has it, and give both sides the same key."""
    host = read(Path("/etc/nvme/hostnqn"))
    with Target() as target, ExitStack() as running:
        port, subsystem = target.port(machine), target.subsystem(NQN)
        if ABLE:
            running.enter_context(handshaking())
            running.enter_context(handshaking("nsenter", f"--net=/run/netns/{machine.name}"))
            names = (f"--hostnqn={host}", f"--subsysnqn={NQN}")
            tool("nvme", "gen-tls-key", *names, "--identity=1", "--insert")
            port.secure()
        port.serve(subsystem)
        yield port, subsystem


@pytest.fixture
async def client(subsystem: tuple[Port, Subsystem], caller: Caller) -> AsyncIterator[Caller]:
    assert subsystem
    yield caller
    await leave(caller)
    assert not controllers()


async def test_tls_is_spoken_where_it_is_asked_for_and_nothing_else(
    client: Caller, subsystem: tuple[Port, Subsystem]
) -> None:
    uri = subsystem[0].uri(subsystem[1])
    await client.manage(uri, "a", tls=True)
    if not ABLE:
        found = await client.until("a", State="failed", StateReason="not-usable")
        assert "TLS" in found["LastErrorMessage"]
        return
    info = (await connected(client, "a"))["ConnectionInfo"]
    assert int(read(Path("/sys/class/nvme", info["controller"], "tls_key")), 16)
    await leave(client)
    await client.manage(uri, "b")
    found = await client.until("b", State="waiting")
    assert not controllers(), found["LastErrorMessage"]


async def test_it_is_said_what_can_be_known_before(
    client: Caller, subsystem: tuple[Port, Subsystem]
) -> None:
    uri = subsystem[0].uri(subsystem[1])
    (found,) = await client.call("Validate", "sa{sv}", uri, given({"tls": True}))
    assert found.get("reason") == (None if ABLE else "not-usable")
    assert not controllers()
