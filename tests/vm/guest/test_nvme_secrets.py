# SPDX-License-Identifier: LGPL-2.1-or-later
"""DH-HMAC-CHAP, and a marked key that is looked for wherever it could show.

A kernel without it (Debian 12's for clouds) must say so, and never connect without the key.
"""

import asyncio
import base64
import os
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.caller import Caller, given, refused
from tests.shell import show as say
from tests.vm.guest.machine import Machine
from tests.vm.guest.nvmet import Port, Subsystem, Target, controllers, read
from tests.vm.guest.search import RECORDS, Sampler, files, sampling, searching
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.units import UNIT, owners, restarted, tool

NQN: Final = "nqn.2026-01.org.example:secret"
HOST: Final = "nqn.2026-01.org.example:host"

AUTHENTICATES: Final = " nvme_auth_negotiate" in Path("/proc/kallsyms").read_text()


class Key:
    """A key as nvme gen-dhchap-key(1) makes it, and what it may look like."""

    def __init__(self) -> None:
        raw = os.urandom(32)
        coded = base64.b64encode(raw + zlib.crc32(raw).to_bytes(4, "little"))
        self.text = b"DHHC-1:00:" + coded + b":"
        self._forms = (coded[:40], raw, raw.hex().encode(), coded[:40].hex().encode())

    def is_in(self, content: bytes) -> bool:
        return any(form in content for form in self._forms)


@pytest.fixture
def key() -> Key:
    return Key()


@pytest.fixture
def sampler(key: Key) -> Iterator[Sampler]:
    with sampling(key.is_in, b"fabrics_child.py\0connect") as sampler:
        yield sampler


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(102) as machine:
        yield machine


@pytest.fixture
def target(machine: Machine) -> Iterator[Target]:
    assert machine.name
    with Target() as target:
        yield target


@pytest.fixture
def locked(target: Target, key: Key) -> Subsystem:
    """Give a subsystem that lets in one host, with the key where this kernel has such."""
    subsystem = target.subsystem(NQN)
    subsystem.allow_all(yes=False)
    subsystem.allow(HOST, key.text.decode() if AUTHENTICATES else "")
    return subsystem


@pytest.fixture
def port(target: Target, machine: Machine, locked: Subsystem) -> Port:
    port = target.port(machine)
    port.serve(locked)
    return port


@pytest.fixture
async def client(port: Port, caller: Caller) -> AsyncIterator[Caller]:
    assert port.address
    yield caller
    await leave(caller)


@pytest.fixture(autouse=True)
async def watched(client: Caller, key: Key, sampler: Sampler) -> AsyncIterator[None]:
    """Look everywhere, while a test runs and after it."""
    async with searching(key.is_in):
        yield
        await leave(client)
    assert not sampler.found


def options(key: Key) -> dict[str, object]:
    return {"host-nqn": HOST, "dhchap-secret": key.text}


async def test_the_key_lets_us_in_and_shows_nowhere(
    client: Caller, port: Port, locked: Subsystem, key: Key, sampler: Sampler
) -> None:
    began = time.time()
    await client.manage(port.uri(locked), "a", **options(key))
    if not AUTHENTICATES:
        found = await client.until("a", State="failed", StateReason="not-usable")
        assert "this kernel has no DH-HMAC-CHAP" in found["LastErrorMessage"]
        assert not controllers()
        return
    name = (await connected(client, "a"))["ConnectionInfo"]["controller"]
    shown = Path("/sys/class/nvme", name, "dhchap_secret")
    assert key.is_in(read(shown).encode())
    assert tool("stat", "--format=%a", shown) == "600\n"
    assert {one.removesuffix("-wal") for one in files(key.is_in, began)} == {RECORDS}
    tool("nvme", "disconnect", "-n", NQN)
    await client.until("a", State="connected", Reconnects=1)
    async with owners() as changes:
        await asyncio.to_thread(tool, "systemctl", "restart", UNIT)
        await restarted(changes)
    await connected(client, "a")
    await leave(client)
    assert not files(key.is_in, began)
    say(f"the child that connects was seen {sampler.tools} times")
    assert sampler.tools


async def test_a_wrong_key_and_none_are_refused_and_not_tried_again_soon(
    client: Caller, port: Port, locked: Subsystem
) -> None:
    reason = "authentication" if AUTHENTICATES else "not-usable"
    await client.manage(port.uri(locked), "a", **options(Key()))
    found = await client.until("a", State="failed", StateReason=reason)
    assert found["NextAttempt"] / 1e6 - time.time() > 60
    assert not controllers()
    if AUTHENTICATES:
        await client.unmanage("a")
        await client.gone(port.uri(locked))
        await client.manage(port.uri(locked), "b", **{"host-nqn": HOST})
        found = await client.until("b", State="failed", StateReason="authentication")
        assert "dhchap-secret" in found["LastErrorMessage"]


async def test_it_is_said_that_a_key_is_wanted(
    client: Caller, port: Port, locked: Subsystem, key: Key
) -> None:
    uri = port.uri(locked)
    (found,) = await client.call("Validate", "sa{sv}", uri, given({"host-nqn": HOST}))
    assert found.get("reason") == ("authentication" if AUTHENTICATES else None)
    (found,) = await client.call("Validate", "sa{sv}", uri, given(options(key)))
    assert "reason" not in found
    assert not controllers()


async def test_what_is_no_key_is_refused_without_being_repeated(
    client: Caller, port: Port, locked: Subsystem
) -> None:
    with refused("InvalidArgument") as refusal:
        bad = {"dhchap-secret": b"hunter2,nqn=evil"}
        await client.manage(port.uri(locked), "a", **bad)
    assert "hunter2" not in refusal.text
