# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of the store share."""

import asyncio
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from storaged_conn.core.model import Lifetime, Record
from storaged_conn.errors import StoreError
from storaged_conn.store import Store

PLAIN = Record("plain", "file:///srv")
FULL = Record(
    "ü x.1",
    "posix+ext4:/dev/loop0",
    {"mountpoint": "/mnt/x", "read-only": True, "n": 1, "mount-options": ("a", "b"), "none": ()},
    4294967294,
    Lifetime.CALLER,
    "bus :1.7",
)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    store = Store(path)
    store.open()
    try:
        yield store
    finally:
        store.close()


def records(path: Path) -> list[Record]:
    store = Store(path)
    try:
        return sorted(store.open(), key=lambda record: record.cid)
    finally:
        store.close()


def keep(path: Path, *some: Record) -> None:
    async def add() -> None:
        async with opened(path) as store:
            await asyncio.gather(*map(store.add, some))

    asyncio.run(add())


def edit(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def everything(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    return {
        file.name: (file.read_bytes(), file.stat().st_mode, file.stat().st_mtime_ns)
        for file in directory.iterdir()
    }


def refusal(path: Path) -> str:
    """Open a store that must be refused, and left as it is to the last byte."""
    before = everything(path.parent)
    with pytest.raises(StoreError) as caught:
        Store(path).open()
    assert everything(path.parent) == before
    return str(caught.value)


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Fail writes as a full disk does: SIGXFSZ is ignored by Python. Source: setrlimit(2)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
