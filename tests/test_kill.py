# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a reply is worth: kill -9 at any moment, and records that cannot be read."""

import asyncio
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from storaged_conn.bus.connection import CallError
from tests.caller import Caller, serving
from tests.live import DEADLINE
from tests.stores import PLAIN, edit, everything, keep

pytestmark = pytest.mark.bus

ROUNDS = 100
IDS = 24
MOST_REPLIES = 60
EX_CONFIG = 78
"""Source: sysexits.h."""

UNANSWERED = {
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
}
"""What the bus says for a service that is gone. Source: dbus, bus/connection.c and dispatch.c."""


class Load:
    """Manages and unmanages all ids at once, again and again.

    Attributes:
        possible: for each id the URIs that may be managed under it, None for nothing. There is one,
            except while an operation is in flight and nobody knows whether it was done.
    """

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.possible: dict[str, set[str | None]] = {f"id {one}": {None} for one in range(IDS)}
        self._replies = 0
        self._enough = asyncio.Event()
        self._serial = 0

    async def run(self, replies: int) -> None:
        """Return after so many replies, while the other operations are in flight."""
        self._replies = replies
        self._enough.clear()
        await self._enough.wait()

    async def toggle(self, cid: str) -> None:
        """Manage or unmanage an id in turns, until the service is gone."""
        while True:
            (before,) = self.possible[cid]
            self._serial += 1
            after = None if before else f"simulated:{self._serial}"
            self.possible[cid] = {before, after}
            try:
                await (self.caller.manage(after, cid) if after else self.caller.unmanage(cid))
            except CallError as error:
                if error.name not in UNANSWERED:
                    raise
                return
            self.possible[cid] = {after}
            self._replies -= 1
            if not self._replies:
                self._enough.set()

    async def check(self) -> None:
        """See that the service knows what it had said that it would, and nothing else."""
        managed = {cid: one["Uri"] for cid, one in (await self.caller.managed()).items()}
        for cid, possible in self.possible.items():
            assert managed.get(cid) in possible, f"{cid}: a reply was given for {possible}"
            self.possible[cid] = {managed.pop(cid, None)}
        assert not managed


async def test_every_reply_holds_after_kill_9(tmp_path: Path) -> None:
    chance = random.Random(9)
    lost = 0
    async with serving(tmp_path, "--log-level", "warning") as service:
        load = Load(service.caller)
        for _ in range(ROUNDS):
            async with asyncio.TaskGroup() as tasks:
                for cid in load.possible:
                    tasks.create_task(load.toggle(cid))
                await load.run(chance.randint(1, MOST_REPLIES))
                await service.daemon.kill()
            lost += sum(len(one) > 1 for one in load.possible.values())
            await service.daemon.start()
            await load.check()
    assert lost > ROUNDS  # it was killed while it had something to do


async def test_a_record_in_the_log_alone_is_a_record(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        await service.caller.manage("simulated:a", "a")
        await service.daemon.kill()
        assert (tmp_path / "state" / "connections.db-wal").stat().st_size
        await service.daemon.start()
        assert set(await service.caller.listed()) == {"a"}


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("PRAGMA user_version = 4", "has format 4, and this version knows 3"),
        ("PRAGMA application_id = 2", "belongs to another program"),
        ("UPDATE record SET options = '{'", "unreadable record, 'plain'"),
        ("", "is not a database"),
    ],
)
def test_records_that_cannot_be_read_are_left_as_they_are(
    tmp_path: Path, harm: str, words: str
) -> None:
    store = tmp_path / "state" / "connections.db"
    keep(store, PLAIN)
    if harm:
        edit(store, harm)
    else:
        store.write_bytes(b"x" * store.stat().st_size)
    before = everything(store.parent)
    argv = [sys.executable, "-m", "storaged_conn", "--bus", f"unix:path={tmp_path}/none"]
    argv += ["--state-dir", str(store.parent), "--runtime-dir", str(tmp_path / "run")]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert result.returncode == EX_CONFIG
    (line,) = result.stderr.splitlines()
    assert str(store) in line
    assert words in line
    assert everything(store.parent) == before


async def test_the_records_are_nobody_else_s_to_see(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        async with serving(tmp_path) as service:
            await service.caller.manage("simulated:a", "a")
            state = tmp_path / "state"
            assert stat.S_IMODE(state.stat().st_mode) == 0o700
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in state.iterdir()}
            assert modes == {"connections.db": 0o600, "connections.db-wal": 0o600}
            runtime = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
            assert not [file for file in runtime if file.stat().st_mode & 0o022]
    finally:
        os.umask(old)
