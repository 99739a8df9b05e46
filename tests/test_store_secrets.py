# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secrets in the store: where they are, in which order they come back, and that they go."""

import asyncio
import os
import random
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from storaged_conn.core.model import Lifetime, Record
from storaged_conn.core.secret import MAX_SECRET_BYTES, Secret
from storaged_conn.errors import StoreError
from storaged_conn.store import FORMAT, Store
from tests.stores import (
    FULL,
    PLAIN,
    edit,
    keep,
    no_file_longer_than,
    opened,
    records,
    refusal,
)

DATA: Final = Path(__file__).parent / "data"
"""Has a file of each format, written by the program as it was then."""

OLD_RECORDS: Final = [
    PLAIN,
    Record("é", "nfs://server/export", {"version": "4.2"}, 1000, Lifetime.RUNTIME, "boot"),
    FULL,
]

ROOMS: Final = {1: (0, 40, 5000, 10000), 2: (0, 40)}
"""Bytes that are too few to change the format; format 2 needs less."""

FORMATS: Final = tuple(range(1, FORMAT))

CANARY: Final = b"canary-hunter2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "connections.db"


def with_password(cid: str, password: bytes = CANARY) -> Record:
    secrets = {"password": Secret(password), "password-in": Secret(b"in")}
    return Record(cid, "iscsi://host/iqn", {"username": "me", **secrets})


def content(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


# where they are


def test_secrets_come_back_and_are_in_no_other_table(path: Path) -> None:
    keep(path, with_password("c"), PLAIN)
    assert records(path) == [with_password("c"), PLAIN]
    with closing(sqlite3.connect(path)) as connection:
        (options,) = connection.execute("SELECT options FROM record WHERE cid = 'c'").fetchone()
        found = connection.execute("SELECT cid, name, value FROM secrets").fetchall()
    assert options == '{"username": "me"}'
    assert found == [("c", "password", CANARY), ("c", "password-in", b"in")]


def test_records_with_secrets_come_back_in_the_order_in_which_they_were_added(path: Path) -> None:
    async def change() -> None:
        async with opened(path) as store:
            for cid in "dbcae":
                await store.add(with_password(cid))
            await store.add(PLAIN)
            await store.remove("c")
            await store.add(with_password("b"))

    asyncio.run(change())
    store = Store(path)
    assert [record.cid for record in store.open()] == ["plain", "d", "a", "e", "b"]
    store.close()


@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_only_the_owner_can_read_any_of_its_files(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        async with opened(path) as store:
            await store.add(with_password("c"))
            await store.remove("c")
            await store.add(with_password("d"))
            modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            assert modes == {0o600}
    finally:
        os.umask(before)


# that they go


async def test_what_sqlite_can_do_itself_it_is_told_to_do(path: Path) -> None:
    async with opened(path) as store:
        ask = store._database._connection.execute
        assert ask("PRAGMA secure_delete").fetchone() == (1,)
        assert ask("PRAGMA temp_store").fetchone() == (2,)  # MEMORY


@pytest.mark.parametrize("longest", [16, 300, 1500, MAX_SECRET_BYTES])
async def test_of_what_was_removed_no_file_has_a_trace(path: Path, longest: int) -> None:
    choice = random.Random(longest)
    live: dict[str, bytes] = {}
    gone: list[bytes] = []
    async with opened(path) as store:
        for number in range(400):
            if live and choice.random() < (0.3 if number < 200 else 0.7):
                cid = choice.choice(list(live))
                gone.append(live.pop(cid))
                await store.remove(cid)
                found = content(path)
                assert not [mark for mark in gone if mark in found]
            else:
                cid = f"{choice.getrandbits(32):08x}"
                live[cid] = mark = b"%08d" % number
                password = mark + choice.randbytes(choice.randrange(longest - len(mark)))
                await store.add(with_password(cid, password))
        found = content(path)
        assert not [mark for mark in live.values() if mark not in found]
    assert len(gone) > 100


async def test_a_secret_that_is_replaced_is_gone_too(path: Path) -> None:
    async with opened(path) as store:
        await store.add(with_password("c"))
        await store.add(with_password("c", b"other"))
        assert CANARY not in content(path)
        assert b"other" in content(path)
    assert records(path) == [with_password("c", b"other")]


def test_a_removal_that_was_cut_off_is_completed_at_the_next_start(path: Path) -> None:
    keep(path, with_password("c"), PLAIN)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("DELETE FROM record WHERE cid = 'c'")
        connection.execute("DELETE FROM secrets")
        copy = path.parent.with_name("crashed")
        shutil.copytree(path.parent, copy)
    assert CANARY in content(copy / path.name)
    (copy / f"{path.name}-shm").unlink()
    assert records(copy / path.name) == [PLAIN]
    assert CANARY not in content(copy / path.name)


def test_what_could_not_be_opened_can_be_closed_also_after_a_crash(path: Path) -> None:
    keep(path, with_password("c"))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE record SET owner = 1")
        other.execute("BEGIN IMMEDIATE")
        store = Store(path)
        with pytest.raises(StoreError, match="cannot be opened for writing: database is locked;"):
            store.open()
        store.close()
    assert [one.cid for one in records(path)] == ["c"]


async def test_a_full_disk_keeps_no_secret_for_ever(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = [with_password(str(number), b"x" * 500) for number in range(100)]
    async with opened(path) as store:
        await asyncio.gather(*map(store.add, many))
        await store.remove("0")
        await store.add(with_password("c"))
        log = path.with_name(path.name + "-wal")
        with no_file_longer_than(log.stat().st_size + 20 * 4096):
            await store.remove("c")
        (record,) = caplog.records
        assert "may still have secrets that were removed" in record.getMessage()
        assert record.getMessage().endswith("give it room, then try again")
        assert CANARY not in record.getMessage().encode()
        await store.remove("1")
        assert CANARY not in content(path)


async def test_what_was_refused_leaves_no_secret_after_the_next_change(path: Path) -> None:
    async with opened(path) as store:
        await store.add(PLAIN)
        log = path.with_name(path.name + "-wal")
        big = [with_password(str(number), CANARY * 200) for number in range(20)]
        with no_file_longer_than(log.stat().st_size + 30000):
            results = await asyncio.gather(*map(store.add, big), return_exceptions=True)
        assert isinstance(results[-1], StoreError)
        assert "hunter2" not in str(results[-1])
        kept = [record for record, result in zip(big, results, strict=True) if result is None]
        for record in kept:
            await store.remove(record.cid)
        await store.add(FULL)
        assert CANARY not in content(path)


# what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE secrets SET value = 'hunter2'", "has a secret of the wrong type at 'c'"),
        ("UPDATE secrets SET sealed = 'hunter2'", "has a secret of the wrong type at 'c'"),
        ("UPDATE secrets SET sealed = 2", "has a secret of the wrong type at 'c'"),
        (
            "UPDATE secrets SET value = CAST(value || x'ff' AS TEXT)",
            "has a secret of the wrong type at 'c'",
        ),
        (
            "UPDATE secrets SET name = x'ff' WHERE number = 1",
            "has a secret of the wrong type at 'c'",
        ),
        ("DELETE FROM record", "has a secret of no record, 'c'"),
        ("DROP TABLE secrets", "cannot be read: no such table: secrets"),
    ],
)
def test_damaged_secrets_are_refused_and_not_repeated(path: Path, change: str, words: str) -> None:
    keep(path, with_password("c", b"hunter2"))
    edit(path, change)
    text = refusal(path)
    assert text.startswith(f"{path} {words}; restore it from a backup")
    assert "hunter2" not in text


# the format before


@pytest.fixture(params=FORMATS)
def old(path: Path, request: pytest.FixtureRequest) -> Path:
    path.parent.mkdir(0o700)
    shutil.copyfile(DATA / f"connections-format-{request.param}.db", path)
    path.chmod(0o600)
    return path


def kept_in(path: Path) -> list[Record]:
    """Give what a file of its format was written with."""
    more = [with_password("old")] if version(path) > 1 else []
    return sorted([*OLD_RECORDS, *more], key=lambda one: one.cid)


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_a_file_of_a_format_before_becomes_one_of_this(old: Path) -> None:
    before = kept_in(old)
    assert version(old) in FORMATS
    assert records(old) == before
    assert version(old) == FORMAT
    keep(old, with_password("c"))
    assert records(old) == sorted([*before, with_password("c")], key=lambda one: one.cid)


def test_the_change_of_format_is_made_as_a_whole_or_not_at_all(old: Path) -> None:
    before, kept = old.read_bytes(), kept_in(old)
    for room in ROOMS[version(old)]:
        with no_file_longer_than(room), pytest.raises(StoreError, match="opened for writing: "):
            Store(old).open()
        assert old.read_bytes() == before
    assert records(old) == kept


def test_a_damaged_file_of_a_format_before_stays_as_it_is(old: Path) -> None:
    before = version(old)
    edit(old, "UPDATE record SET options = '{'")
    assert "has an unreadable record, 'plain'" in refusal(old)
    assert version(old) == before


def test_the_secrets_table_of_all_ways_is_the_same(old: Path, tmp_path: Path) -> None:
    keep(tmp_path / "new" / "store", PLAIN)
    records(old)
    schemas = []
    for one in (old, tmp_path / "new" / "store"):
        with closing(sqlite3.connect(one)) as connection:
            ask = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"
            schemas.append(connection.execute(ask).fetchall())
    assert schemas[0] == schemas[1]
