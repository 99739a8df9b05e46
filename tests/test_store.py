# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import os
import sqlite3
import stat
import tempfile
import threading
from contextlib import closing
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.core.model import Lifetime, Record, Value
from storaged_conn.core.secret import Secret
from storaged_conn.errors import StoreError
from storaged_conn.store import MAX_PENDING, Store
from tests.stores import FULL, PLAIN, keep, opened, records, refusal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "connections.db"


# what is kept


def test_what_was_added_is_there_after_a_restart(path: Path) -> None:
    keep(path, FULL, PLAIN)
    assert records(path) == [PLAIN, FULL]


async def test_what_was_removed_is_not(path: Path) -> None:
    async with opened(path) as store:
        await store.add(FULL)
        await store.add(PLAIN)
        await store.remove(FULL.cid)
        await store.remove("never there")
    assert records(path) == [PLAIN]


def test_adding_an_id_again_replaces_its_record(path: Path) -> None:
    changed = Record(PLAIN.cid, "file:///other", {"read-only": True})
    keep(path, PLAIN, changed)
    assert records(path) == [changed]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
values: st.SearchStrategy[Value] = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    texts,
    st.lists(texts, max_size=3).map(tuple),
    st.binary(max_size=20).map(Secret),
)


def exact(record: Record) -> str:
    secrets = [value for value in record.options.values() if isinstance(value, Secret)]
    shown = repr((replace(record, options={}), sorted(record.options.items(), key=itemgetter(0))))
    return shown + str(sorted(one.reveal() for one in secrets))  # True is 1, but not so written


@given(
    st.builds(
        Record,
        cid=texts,
        uri=texts,
        options=st.dictionaries(texts, values, max_size=5),
        owner=st.integers(0, 2**32 - 1),
        lifetime=st.sampled_from(Lifetime),
        scope=texts,
    )
)
def test_every_record_comes_back_exactly(record: Record) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "store"
        keep(path, record)
        (found,) = records(path)
    assert exact(found) == exact(record)


async def test_many_records_come_back(path: Path) -> None:
    many = [Record(f"{number:04}", f"file:///{number}") for number in range(2 * MAX_PENDING)]
    async with opened(path) as store:
        await asyncio.gather(*(store.add(record) for record in many))
    assert records(path) == many


# how it is written


async def test_the_loop_never_waits_for_the_disk(path: Path) -> None:
    async with opened(path) as store:
        writing = threading.Event()
        hold_writer(store, writing)
        task = asyncio.create_task(store.add(PLAIN))
        await asyncio.sleep(0.05)  # the loop turns while the disk does not answer
        assert not task.done()
        writing.set()
        await task


def hold_writer(store: Store, until: threading.Event) -> None:
    """Keep the store's thread as busy as a slow disk does."""
    store._thread.submit(until.wait)


async def test_every_commit_reaches_the_disk(path: Path) -> None:
    async with opened(path) as store:
        ask = store._database._connection.execute
        assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
        assert ask("PRAGMA synchronous").fetchone() == (3,)  # EXTRA


async def test_changes_that_come_during_a_commit_share_the_next_one(path: Path) -> None:
    async with opened(path) as store:
        statements: list[str] = []
        store._database._connection.set_trace_callback(statements.append)
        writing = threading.Event()
        hold_writer(store, writing)
        tasks = [asyncio.create_task(store.add(Record(str(n), "file:///"))) for n in range(50)]
        await asyncio.sleep(0)
        writing.set()
        await asyncio.gather(*tasks)
        assert statements.count("COMMIT") == 2  # the first alone, then the other 49


async def test_changes_beyond_the_bound_wait_for_room_and_all_are_kept(path: Path) -> None:
    async with opened(path) as store:
        writing = threading.Event()
        hold_writer(store, writing)
        count = MAX_PENDING + 100
        tasks = [asyncio.create_task(store.add(Record(str(n), "file:///"))) for n in range(count)]
        await asyncio.sleep(0)
        assert len(store._pending) == MAX_PENDING - 1  # one is being written
        writing.set()
        await asyncio.gather(*tasks)
    assert len(records(path)) == count


async def test_changes_are_made_in_the_order_of_the_calls(path: Path) -> None:
    async with opened(path) as store:
        await asyncio.gather(
            store.add(PLAIN), store.remove(PLAIN.cid), store.add(FULL), store.remove(FULL.cid)
        )
        await asyncio.gather(store.remove(PLAIN.cid), store.add(PLAIN))
    assert records(path) == [PLAIN]


async def test_a_cancelled_caller_leaves_a_change_that_is_made(path: Path) -> None:
    async with opened(path) as store:
        writing = threading.Event()
        hold_writer(store, writing)
        tasks = [asyncio.create_task(store.add(record)) for record in (PLAIN, FULL)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        removed = asyncio.create_task(store.remove(PLAIN.cid))
        writing.set()
        await removed
    assert records(path) == [FULL]


async def test_closing_finishes_what_was_begun(path: Path) -> None:
    store = Store(path)
    store.open()
    tasks = [asyncio.create_task(store.add(Record(str(n), "file:///"))) for n in range(100)]
    await asyncio.sleep(0)
    store.close()
    assert len(records(path)) == 100
    await asyncio.gather(*tasks)


# files and modes


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_only_the_owner_can_read_any_of_its_files(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        async with opened(path) as store:
            await store.add(PLAIN)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            assert modes == {path.name: 0o600, path.name + "-wal": 0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_closed_it_is_one_file(path: Path) -> None:
    keep(path, PLAIN)
    assert list(path.parent.iterdir()) == [path]


def test_a_creation_that_was_cut_off_is_begun_anew(path: Path) -> None:
    path.parent.mkdir(0o700)
    path.with_name(path.name + ".new").write_bytes(b"half a file")
    keep(path, PLAIN)
    assert records(path) == [PLAIN]
    assert list(path.parent.iterdir()) == [path]


def test_a_state_directory_without_a_parent_is_refused(path: Path) -> None:
    with pytest.raises(StoreError, match=r"state/a cannot be used: .* make it a directory"):
        Store(path.parent / "a" / "store").open()


def test_a_state_directory_that_others_can_write_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o770)
    assert f"{path.parent} can be changed by others; give it to uid" in refusal(path)


async def test_a_second_daemon_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await store.add(PLAIN)
        assert refusal(path) == f"{path.parent} is in use; stop the other storaged-connd first"
        await store.add(FULL)
    assert records(path) == [PLAIN, FULL]


def test_a_file_that_another_program_has_locked_is_refused(path: Path) -> None:
    keep(path, PLAIN)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="cannot be opened for writing: database is locked;"):
            Store(path).open()
    assert records(path) == [PLAIN]
