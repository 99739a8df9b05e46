# SPDX-License-Identifier: LGPL-2.1-or-later
"""DH-HMAC-CHAP, and a marked key that is looked for wherever it could show.

A kernel without it (Debian 12's for clouds) must say so, and never connect without the key.
"""

import asyncio
import base64
import os
import subprocess
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from storaged_conn.bus.wire import Field, Kind
from tests.caller import MAX_MESSAGE, Caller, given, refused
from tests.canary import Tap, processes
from tests.live import DEADLINE
from tests.shell import show as say
from tests.vm.guest.machine import Machine
from tests.vm.guest.nvmet import Port, Subsystem, Target, controllers
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.units import SYSTEM_BUS, UNIT, owners, restarted, tool

NQN: Final = "nqn.2026-01.org.example:secret"
HOST: Final = "nqn.2026-01.org.example:host"

AUTHENTICATES: Final = " nvme_auth_negotiate" in Path("/proc/kallsyms").read_text()

TELLING: Final = {"Manage", "Validate"}
"""The calls in which a caller sends the key."""

RECORDS: Final = "/var/lib/storaged-conn/connections.db"


class Key:
    """A key as nvme gen-dhchap-key(1) makes it, and what it may look like."""

    def __init__(self) -> None:
        raw = os.urandom(32)
        coded = base64.b64encode(raw + zlib.crc32(raw).to_bytes(4, "little"))
        self.text = b"DHHC-1:00:" + coded + b":"
        self._forms = (coded[:40], raw, raw.hex().encode(), coded[:40].hex().encode())

    def is_in(self, content: bytes) -> bool:
        return any(form in content for form in self._forms)


class Sampler(threading.Thread):
    """Looks at how all processes were started, again and again.

    Attributes:
        found: where the key was.
        children: how often the child that connects was seen.
    """

    def __init__(self, key: Key) -> None:
        super().__init__(daemon=True)
        self.found: set[Path] = set()
        self.children = 0
        self._key = key
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            for place, content in processes():
                self.children += b"fabrics_child.py\0connect" in content
                if self._key.is_in(content):
                    self.found.add(place)

    def end(self) -> None:
        self._done.set()
        self.join(DEADLINE)


@pytest.fixture
def key() -> Key:
    return Key()


@pytest.fixture
def sampler(key: Key) -> Iterator[Sampler]:
    sampler = Sampler(key)
    sampler.start()
    yield sampler
    sampler.end()


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


@pytest.fixture
async def tap() -> AsyncIterator[Tap]:
    tap = await Tap.open(SYSTEM_BUS, max_message=MAX_MESSAGE)
    assert isinstance(tap, Tap)
    with closing(tap):
        await tap.monitor()
        yield tap


@pytest.fixture(autouse=True)
async def watched(client: Caller, key: Key, sampler: Sampler, tap: Tap) -> AsyncIterator[None]:
    """Look everywhere, while a test runs and after it."""
    began = time.time()
    yield
    await leave(client)
    assert not sampler.found
    found = [one for one, raw in tap.seen if key.is_in(raw)]
    assert {one.text(Field.MEMBER) for one in found} <= TELLING
    assert {one.kind for one in found} <= {Kind.CALL}
    assert not key.is_in(journal(began))
    assert not files(key, began)


def journal(began: float) -> bytes:
    argv = ("journalctl", f"--since=@{began:.0f}", "--output=export", "--all")
    return subprocess.run(argv, capture_output=True, timeout=DEADLINE, check=True).stdout


def files(key: Key, began: float) -> set[str]:
    """Give the files with the key, of all those that were changed since then and that are kept."""
    argv = ("find", "/", "/run", "/tmp", "/dev/shm", "-xdev", "-type", "f", "-newerct")
    changed = tool(*argv, f"@{began:.0f}").splitlines()
    return {one for one in changed if key.is_in(read(Path(one)))}


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


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
    assert key.is_in(read(shown))
    assert tool("stat", "--format=%a", shown) == "600\n"
    assert {one.removesuffix("-wal") for one in files(key, began)} == {RECORDS}
    tool("nvme", "disconnect", "-n", NQN)
    await client.until("a", State="connected", Reconnects=1)
    async with owners() as changes:
        await asyncio.to_thread(tool, "systemctl", "restart", UNIT)
        await restarted(changes)
    await connected(client, "a")
    await leave(client)
    assert not files(key, began)
    say(f"the child that connects was seen {sampler.children} times")
    assert sampler.children


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
