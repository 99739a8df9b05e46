# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

from storaged_conn.core.model import Record
from storaged_conn.errors import StoreError
from storaged_conn.store import APPLICATION, FORMAT, Store
from tests.stores import (
    FULL,
    PLAIN,
    edit,
    everything,
    keep,
    no_file_longer_than,
    opened,
    records,
    refusal,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "connections.db"


# what is refused


def test_a_table_with_another_column_is_refused(path: Path) -> None:
    keep(path, PLAIN)
    edit(path, "ALTER TABLE record ADD COLUMN more TEXT")
    assert "has a column of the wrong type at 'plain'" in refusal(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_file_that_others_can_access_is_refused(path: Path, mode: int) -> None:
    keep(path, PLAIN)
    path.chmod(mode)
    assert refusal(path).startswith(f"{path} is accessible to others; look into it, then chmod")


def test_a_file_of_somebody_else_is_refused(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    keep(path, PLAIN)
    os.chown(path, 65534, 0)
    assert refusal(path).startswith(f"{path} is not a regular file of uid 0;")


def test_a_symlink_is_refused(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "store"
    keep(elsewhere, PLAIN)
    path.parent.mkdir(0o700)
    path.symlink_to(elsewhere)
    before = everything(elsewhere.parent)
    assert f"{path} is not a regular file of uid" in refusal(path)
    assert everything(elsewhere.parent) == before


def test_a_dangling_symlink_is_refused(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(0o700)
    path.symlink_to(tmp_path / "nothing")
    with pytest.raises(StoreError, match="is not a regular file of uid"):
        Store(path).open()
    assert not (tmp_path / "nothing").exists()


def test_a_newer_file_is_refused(path: Path) -> None:
    keep(path, PLAIN)
    edit(path, f"PRAGMA user_version = {FORMAT + 1}")
    assert refusal(path).startswith(
        f"{path} has format 4, and this version knows 3; install the version that wrote it"
    )


def test_a_file_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir(0o700)
    edit(path, "CREATE TABLE theirs (x)", "PRAGMA journal_mode = WAL")
    path.chmod(0o600)
    assert refusal(path).startswith(f"{path} belongs to another program; restore it from a backup")


@pytest.mark.parametrize("content", [b"x", b"not a database " * 1000, b"\0" * 4096])
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir(0o700)
    path.touch(0o600)
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path} ")


def test_an_empty_file_is_refused_with_the_log_that_belongs_to_it(path: Path) -> None:
    copy = crashed(path)
    copy.write_bytes(b"")
    assert refusal(copy).startswith(f"{copy} is empty; ")


def crashed(path: Path) -> Path:
    """Leave what a power loss leaves: the file, and a log that was not yet put into it."""

    async def add_and_copy() -> Path:
        async with opened(path) as store:
            await store.add(PLAIN)
            return Path(copytree(path.parent, path.parent.with_name("crashed")))

    keep(path, *(Record(f"{number:04}", f"file:///{number}") for number in range(1000)))
    copy = asyncio.run(add_and_copy())
    assert (copy / f"{path.name}-wal").stat().st_size > 0
    return copy / path.name


def test_what_only_the_log_has_is_read_from_it(path: Path) -> None:
    copy = crashed(path)
    found = records(copy)
    assert len(found) == 1001
    assert PLAIN in found
    assert list(copy.parent.iterdir()) == [copy]


def test_a_damaged_file_is_refused(path: Path) -> None:
    crashed(path)
    damage(path)
    assert refusal(path).startswith(f"{path} ")


def test_a_damaged_file_is_refused_with_the_log_that_belongs_to_it(path: Path) -> None:
    copy = crashed(path)
    damage(copy)
    assert refusal(copy).startswith(f"{copy} ")


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(os.urandom(4096))


@pytest.mark.parametrize(
    "change",
    [
        "options = '{'",
        "options = '[]'",
        """options = '{"a": 1.5}'""",
        """options = '{"a": [1]}'""",
        """options = '{"a": null}'""",
        """options = '{"a": ' || replace(hex(zeroblob(50000)), '0', '[')""",
        "lifetime = 'eternal'",
    ],
)
def test_an_unreadable_record_is_named(path: Path, change: str) -> None:
    keep(path, PLAIN, FULL)
    edit(path, f"UPDATE record SET {change} WHERE cid = 'plain'")
    assert refusal(path).startswith(f"{path} has an unreadable record, 'plain': ")


@pytest.mark.parametrize("change", ["owner = 'root'", "owner = 1.5", "uri = x'ff'"])
def test_a_column_of_the_wrong_type_is_damage(path: Path, change: str) -> None:
    keep(path, PLAIN)
    edit(path, f"UPDATE record SET {change}")
    assert refusal(path).startswith(f"{path} has a column of the wrong type at 'plain'; restore")


def test_the_application_id_is_what_file_shows() -> None:
    assert APPLICATION == 0x53746F43


# failures


@pytest.mark.parametrize("room", [0, 100, 4096, 6000, 12000, 30000])
async def test_what_cannot_be_written_fails_alone_and_leaves_nothing(path: Path, room: int) -> None:
    big = [Record(f"big {number}", "file:///" + number * "x") for number in range(4000, 4020)]
    async with opened(path) as store:
        await store.add(PLAIN)
        with no_file_longer_than(room):
            results = await asyncio.gather(*map(store.add, big), return_exceptions=True)
        assert all(isinstance(result, StoreError) for result in results[1:])
        assert str(results[-1]).startswith(f"{path} cannot be written: ")
        copy = copytree(path.parent, path.parent.with_name("crashed")) / path.name
        await store.add(FULL)
    first = big[:1] if results[0] is None else []
    assert records(copy) == [*first, PLAIN]
    assert records(path) == [*first, PLAIN, FULL]


def test_a_creation_without_room_says_so_and_can_be_repeated(path: Path) -> None:
    with no_file_longer_than(0), pytest.raises(StoreError, match=r"cannot be created: .* room"):
        Store(path).open()
    keep(path, PLAIN)
    assert records(path) == [PLAIN]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.root
async def test_on_a_full_disk_it_fails_until_there_is_room(small: Path) -> None:
    path = small / "state" / "store"
    async with opened(path) as store:
        await store.add(PLAIN)
        filler = small / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(200 * 1024))
        tries = (store.add(FULL) for _ in range(100))  # the log may have a little room left
        with pytest.raises(StoreError, match="cannot be written: database or disk is full; end"):
            await asyncio.gather(*tries)
        filler.unlink()
        await store.remove(PLAIN.cid)
        await store.add(FULL)
    assert records(path) == [FULL]


@pytest.mark.root
def test_on_a_read_only_disk_it_is_refused(small: Path) -> None:
    path = small / "state" / "store"
    keep(path, PLAIN)
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    assert f"{path} cannot be opened for writing: " in refusal(path)


def test_half_a_surrogate_pair_is_refused(path: Path) -> None:
    keep(path, PLAIN)
    edit(path, """UPDATE record SET options = '{"mountpoint": "/mnt/\\ud800"}'""")
    assert "has an unreadable record, 'plain': 'utf-8' codec can't encode" in refusal(path)
