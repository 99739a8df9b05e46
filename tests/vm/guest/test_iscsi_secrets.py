# SPDX-License-Identifier: LGPL-2.1-or-later
"""CHAP, and a marked secret that is looked for wherever it could show."""

import asyncio
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from storaged_conn.bus.wire import Field, Kind
from tests.caller import MAX_MESSAGE, Caller, given, refused
from tests.canary import Canary, Tap, processes
from tests.live import DEADLINE
from tests.shell import show as say
from tests.vm.guest.initiator import CONFIG, iscsiadm, logged_in, records, session, sessions
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.targets import Account, Targets
from tests.vm.guest.units import SYSTEM_BUS, UNIT, owners, restarted, tool

AGAIN: Final = 300
"""Seconds between two attempts with the same wrong password."""

QUIET: Final = 10.0
"""Seconds in which nobody may try again: iscsid itself would, after one to two."""

TELLING: Final = {"Manage", "Validate", "Discover"}
"""The calls in which a caller sends the secret."""

RECORDS: Final = "/var/lib/storaged-conn/connections.db"


class Chap(NamedTuple):
    """What is offered, and the secrets, which only this process and the target know."""

    ours: Canary
    theirs: Canary
    wrong: Canary
    one_way: str
    mutual: str

    @property
    def finding(self) -> dict[str, object]:
        return {"username": "finder", "password": self.ours.text.encode()}

    @property
    def right(self) -> dict[str, object]:
        return {"username": "ours", "password": self.ours.text.encode()}

    @property
    def both(self) -> dict[str, object]:
        return self.right | {"username_in": "theirs", "password_in": self.theirs.text.encode()}

    def marks(self, content: bytes) -> bool:
        return any(one.is_in(content) for one in (self.ours, self.theirs, self.wrong))


@pytest.fixture(scope="module")
def chap(machine: Targets) -> Iterator[Chap]:
    """Offer targets that ask for secrets; they must be there before anybody looks."""
    ours, theirs, wrong = Canary(), Canary(), Canary()
    one_way = machine.offer("one-way", Account("ours", ours.text))
    mutual = machine.offer("mutual", Account("ours", ours.text), Account("theirs", theirs.text))
    machine.secure(Account("finder", ours.text))
    yield Chap(ours, theirs, wrong, one_way, mutual)
    machine.withdraw(one_way)
    machine.withdraw(mutual)


class Sampler(threading.Thread):
    """Looks at how all processes were started, again and again.

    Attributes:
        found: where a secret was.
        tools: how often iscsiadm was seen.
    """

    def __init__(self, chap: Chap) -> None:
        super().__init__(daemon=True)
        self.found: set[str] = set()
        self.tools = self.rounds = 0
        self._chap = chap
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.rounds += 1
            for place, content in processes():
                self.tools += content.startswith(b"iscsiadm\0") or b"/iscsiadm\0" in content
                if self._chap.marks(content):
                    self.found.add(f"{place}: {content.split(bytes(1))[0].decode()}")

    def end(self) -> None:
        self._done.set()
        self.join(DEADLINE)


@pytest.fixture(scope="module")
def sampler(chap: Chap) -> Iterator[Sampler]:
    sampler = Sampler(chap)
    sampler.start()
    yield sampler
    sampler.end()


@pytest.fixture
async def tap() -> AsyncIterator[Tap]:
    tap = await Tap.open(SYSTEM_BUS, max_message=MAX_MESSAGE)
    assert isinstance(tap, Tap)
    with closing(tap):
        await tap.monitor()
        yield tap


@pytest.fixture(autouse=True)
async def watched(client: Caller, chap: Chap, sampler: Sampler, tap: Tap) -> AsyncIterator[None]:
    """Look everywhere, while a test runs and after it."""
    began = time.time()
    yield
    await leave(client)
    assert not sampler.found
    found = [one for one, raw in tap.seen if chap.marks(raw)]
    assert {one.text(Field.MEMBER) for one in found} <= TELLING
    assert {one.kind for one in found} <= {Kind.CALL}
    assert not chap.marks(journal(began))
    assert not files(chap, began)


def journal(began: float) -> bytes:
    argv = ("journalctl", f"--since=@{int(began)}", "--output=export", "--all")
    return subprocess.run(argv, capture_output=True, timeout=DEADLINE, check=True).stdout


def files(chap: Chap, began: float) -> set[str]:
    """Give the files with a mark, of all those that were changed since then and that are kept.

    A name of a network namespace is a regular file to find(1), and cannot be read.
    """
    places = ("/", "/run", "/tmp", "/dev/shm", "-xdev", "-ignore_readdir_race")
    argv = ("find", *places, "-type", "f", "-not", "-fstype", "nsfs", "-newerct")
    changed = tool(*argv, f"@{int(began)}").splitlines()
    return {one for one in changed if chap.marks(read(one))}


def read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        return b""


async def test_the_right_password_is_kept_in_two_files_and_shown_nowhere(
    client: Caller, machine: Targets, chap: Chap, sampler: Sampler
) -> None:
    began = time.time()
    await client.manage(machine.uri(chap.one_way), "a", **chap.right)
    found = await connected(client, "a")
    tool("dd", f"if={found['Devices'][0]}", "of=/dev/null", "bs=64k", "count=1", "status=none")
    kept = files(chap, began)
    (record,) = {one for one in kept if one.startswith(str(CONFIG))}
    assert {one.removesuffix("-wal") for one in kept - {record}} == {RECORDS}
    for one in kept:
        assert tool("stat", "--format=%a %U", one).split() == ["600", "root"]
    iscsiadm("--mode=session", f"--sid={session(found)}", "--logout")
    await client.until("a", State="connected", Reconnects=1)
    async with owners() as changes:
        await asyncio.to_thread(tool, "systemctl", "restart", UNIT)
        await restarted(changes)
    await connected(client, "a")
    await leave(client)
    assert not files(chap, began)
    say(f"iscsiadm was seen {sampler.tools} times in {sampler.rounds} rounds")
    assert sampler.tools


async def test_both_sides_prove_who_they_are(client: Caller, machine: Targets, chap: Chap) -> None:
    await client.manage(machine.uri(chap.mutual), "a", **chap.both)
    await connected(client, "a")
    await leave(client)
    wrong = chap.both | {"password_in": chap.wrong.text.encode()}
    await client.manage(machine.uri(chap.mutual), "b", **wrong)
    await client.until("b", State="failed", StateReason="authentication")
    assert not logged_in()


async def test_a_wrong_password_fails_and_is_not_tried_again_soon(
    client: Caller, machine: Targets, chap: Chap
) -> None:
    wrong = chap.right | {"password": chap.wrong.text.encode()}
    await client.manage(machine.uri(chap.one_way), "a", **wrong)
    found = await client.until("a", State="failed", StateReason="authentication")
    assert found["LastErrorName"].endswith("AuthenticationFailed")
    assert found["NextAttempt"] / 1e6 - time.time() > AGAIN - DEADLINE
    tried = attempts()
    await asyncio.sleep(QUIET)
    found = await client.properties("a")
    assert (found["State"], found["Attempts"]) == ("failed", 1)
    assert attempts() == tried
    await client.unmanage("a")
    await client.gone(machine.uri(chap.one_way))
    await client.manage(machine.uri(chap.one_way), "a", **chap.right)
    await connected(client, "a")


async def test_no_password_fails_too(client: Caller, machine: Targets, chap: Chap) -> None:
    await client.manage(machine.uri(chap.one_way), "a")
    await client.until("a", State="failed", StateReason="authentication")


def attempts() -> int:
    """Give how many hosts the kernel has made by now: one for each attempt to log in."""
    return tool("journalctl", "--boot", "--dmesg", "--quiet").count("iSCSI Initiator over TCP/IP")


async def test_asking_keeps_nothing(client: Caller, machine: Targets, chap: Chap) -> None:
    wrong = chap.right | {"password": chap.wrong.text.encode()}
    for options, reason in ((chap.right, None), (wrong, "authentication"), ({}, "authentication")):
        uri = machine.uri(chap.one_way)
        (found,) = await client.call("Validate", "sa{sv}", uri, given(options))
        assert found.get("reason") == reason, found
        assert found["ok"] is (reason is None)
    assert not sessions()
    assert not records()


async def test_what_is_offered_is_told_to_who_knows_the_password(
    client: Caller, machine: Targets, chap: Chap
) -> None:
    uri = f"iscsi://{machine.address}"
    (found,) = await client.call("Discover", "sa{sv}", uri, given(chap.finding))
    assert chap.one_way in str([one["uri"] for one in found])
    for wrong in (chap.finding | {"password": chap.wrong.text.encode()}, {}):
        with refused("AuthenticationFailed"):
            await client.call("Discover", "sa{sv}", uri, given(wrong))
    assert not records()
