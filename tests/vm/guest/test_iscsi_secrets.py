# SPDX-License-Identifier: LGPL-2.1-or-later
"""CHAP, and a marked secret that is looked for wherever it could show."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.caller import Caller, given, refused
from tests.canary import Canary
from tests.live import DEADLINE
from tests.shell import show as say
from tests.vm.guest.initiator import iscsiadm, logged_in, records, session, sessions
from tests.vm.guest.search import RECORDS, Sampler, files, sampling, searching
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.targets import Account, Targets
from tests.vm.guest.units import UNIT, owners, restarted, tool

AGAIN: Final = 300
"""Seconds between two attempts with the same wrong password."""

QUIET: Final = 10.0
"""Seconds in which nobody may try again: iscsid itself would, after one to two."""


KEY: Final = Path("/var/lib/systemd/credential.secret")
"""The host's. Source: systemd-creds(1)."""


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


@pytest.fixture(scope="module")
def sampler(chap: Chap) -> Iterator[Sampler]:
    with sampling(chap.marks, b"iscsiadm\0") as sampler:
        yield sampler


@pytest.fixture(autouse=True)
async def watched(client: Caller, chap: Chap, sampler: Sampler) -> AsyncIterator[None]:
    """Look everywhere, while a test runs and after it."""
    async with searching(chap.marks):
        yield
        await leave(client)
    assert not sampler.found


async def test_the_right_password_is_kept_in_two_files_and_shown_nowhere(
    client: Caller, machine: Targets, chap: Chap, sampler: Sampler
) -> None:
    began = time.time()
    await client.manage(machine.uri(chap.one_way), "a", **chap.right)
    found = await connected(client, "a")
    tool("dd", f"if={found['Devices'][0]}", "of=/dev/null", "bs=64k", "count=1", "status=none")
    kept = files(chap.marks, began)
    (record,) = records()
    assert record in kept
    assert {one.removesuffix("-wal") for one in kept - {record}} == {RECORDS}
    for one in kept:
        assert tool("stat", "--format=%a %U", one).split() == ["600", "root"]
    iscsiadm("--mode=session", f"--sid={session(found)}", "--logout")
    await client.until("a", State="connected", Reconnects=1)
    await restart()
    await connected(client, "a")
    await leave(client)
    assert not files(chap.marks, began)
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


async def test_the_hosts_own_credentials_are_used_for_root_alone(
    client: Caller, machine: Targets, chap: Chap
) -> None:
    """The owner is changed where it is stored, since nobody may call in this guest."""
    with for_all(chap):
        await client.manage(machine.uri(chap.one_way), "a")
        found = await connected(client, "a")
        async with owners() as changes:
            await asyncio.to_thread(give_to_nobody, session(found))
            await restarted(changes)
        await client.until("a", State="failed", StateReason="authentication")
        assert not sessions()
        await leave(client)


@contextmanager
def for_all(chap: Chap) -> Iterator[None]:
    """Have the right password in iscsid.conf."""
    conf = Path("/etc/iscsi/iscsid.conf")
    before = conf.read_text()
    credentials = {"authmethod": "CHAP", "username": "ours", "password": chap.ours.text}
    lines = (f"node.session.auth.{name} = {value}" for name, value in credentials.items())
    conf.write_text("\n".join((before, *lines, "")))
    try:
        yield
    finally:
        conf.write_text(before)


def give_to_nobody(number: int) -> None:
    """Give all records to nobody while the service is down, and log a session out."""
    tool("systemctl", "stop", UNIT)
    with closing(sqlite3.connect(RECORDS)) as database, database:
        database.execute("UPDATE record SET owner = 65534")
    iscsiadm("--mode=session", f"--sid={number}", "--logout")
    tool("systemctl", "start", UNIT)


async def test_encrypted_the_password_is_kept_in_the_node_record_alone(
    client: Caller, machine: Targets, chap: Chap
) -> None:
    """Inside the sandbox; and without the host's key nothing is lost."""
    began = time.time()
    with encrypting():
        await restart()
        await client.manage(machine.uri(chap.one_way), "a", **chap.right)
        await connected(client, "a")
        assert files(chap.marks, began) == records()
        await asyncio.to_thread(KEY.rename, KEY.with_suffix(".away"))
        await restart()
        found = await client.until("a", State="failed", StateReason="not-usable")
        assert str(KEY) in found["LastErrorMessage"]
        await asyncio.to_thread(KEY.with_suffix(".away").rename, KEY)
        await restart()
        await connected(client, "a")
        await leave(client)
    await restart()


@contextmanager
def encrypting() -> Iterator[None]:
    """Have secrets encrypted from the next start on; in the end the host has no key again."""
    place = Path("/run/storaged-conn/storaged-conn.conf.d/test.conf")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("[Secrets]\nEncrypt=yes\n")
    try:
        yield
    finally:
        place.unlink()
        for key in (KEY, KEY.with_suffix(".away")):
            key.unlink(missing_ok=True)


async def restart() -> None:
    async with owners() as changes:
        await asyncio.to_thread(tool, "systemctl", "restart", UNIT)
        await restarted(changes)


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
