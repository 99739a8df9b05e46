# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must survive a restart: who manages what. One SQLite file, written by one thread.

A change is durable when its awaitable returns: in WAL mode with synchronous=EXTRA every commit ends
with an fsync of the log, and of the directory where the log is new, and a transaction that was cut
off is not there afterwards (sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous). While
one commit waits for the disk, the changes that come meanwhile gather, and go into the next one.

A file that is not ours, not whole or newer than this program is refused and stays as it is, byte by
byte: it is checked, and all records are read, before anything is opened for writing. Against a
second daemon SQLite's own lock would come too late; a lock on the directory comes before all else.

Secrets are in a table of their own. Of one that was removed nothing is left in any file when the
awaitable returns: secure_delete alone does not do that, for it zeroes a row where it is, and not
where it was before SQLite moved it to another page (btree.c, rebuildPage). So the whole file is
written anew then, and the log is emptied: 1 ms for 100 records, 13 ms for 10,000.
"""

import asyncio
import fcntl
import json
import logging
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from storaged_conn.core.model import MAX_INTEGER, Lifetime, Record, Value
from storaged_conn.core.secret import Secret
from storaged_conn.errors import StoreError

logger = logging.getLogger(__name__)

FORMAT: Final = 3
"""The `user_version` of the file; a change that older programs would misread counts it up.

Format 1 had no secrets, and format 2 none that are encrypted. They are read, and become format 3
when the file is opened for writing.
"""

APPLICATION: Final = int.from_bytes(b"StoC")
"""The `application_id` of the file. Source: sqlite.org/pragma.html#pragma_application_id."""

MAX_PENDING: Final = 1024
"""Changes that wait for the disk; a commit of so many takes some 10 ms, as long as its fsync."""

_ADD_SECRETS: Final = """
CREATE TABLE secrets (
    number INTEGER PRIMARY KEY,
    cid TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    UNIQUE (cid, name)
);
"""
_ADD_SEALED: Final = f"""
ALTER TABLE secrets ADD COLUMN sealed INTEGER NOT NULL DEFAULT 0;
PRAGMA user_version = {FORMAT};
"""
_MIGRATE: Final = {
    1: f"BEGIN IMMEDIATE; {_ADD_SECRETS} {_ADD_SEALED} COMMIT",
    2: f"BEGIN IMMEDIATE; {_ADD_SEALED} COMMIT",
}
_CREATE: Final = f"""
BEGIN;
PRAGMA application_id = {APPLICATION};
CREATE TABLE record (
    cid TEXT NOT NULL PRIMARY KEY,
    uri TEXT NOT NULL,
    options TEXT NOT NULL,
    owner INTEGER NOT NULL,
    lifetime TEXT NOT NULL,
    scope TEXT NOT NULL
) WITHOUT ROWID;
{_ADD_SECRETS}
{_ADD_SEALED}
COMMIT;
PRAGMA journal_mode = WAL;
"""
_INSERT: Final = "INSERT INTO secrets (cid, name, value, sealed) VALUES (?, ?, ?, ?)"
# By format. They cast, because the error for a text that is no UTF-8 has the text.
_SELECT: Final = {
    2: "SELECT cid, name, typeof(value), CAST(value AS BLOB), 0 FROM secrets ORDER BY number",
    3: "SELECT cid, name, typeof(value), CAST(value AS BLOB), sealed FROM secrets ORDER BY number",
}
# The lock comes before the first access, so that the log's index is in memory: sqlite.org/wal.html.
# Without temp_store, VACUUM would write secrets to a file in another directory.
_SET_UP: Final = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA synchronous = EXTRA;
PRAGMA secure_delete = ON;
PRAGMA temp_store = MEMORY;
"""
_KEEP: Final = "restore it from a backup, or move it away to begin without any connection"
_FREE: Final = "end what else has it open, make it writable and give it room, then try again"


class Store:
    """The records, durable."""

    def __init__(self, path: Path) -> None:
        self._database = _Database(path)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._room = asyncio.Semaphore(MAX_PENDING)
        self._pending: list[_Change] = []
        self._committing = False

    def open(self) -> list[Record]:
        """Read all records, creating the file where it is missing. It blocks: call it first of all.

        Returns:
            Those without secrets, then those with some, in the order in which they were added.

        Raises:
            StoreError: it is not readable, not ours or in use; nothing was changed.
        """
        return self._database.open()

    async def add(self, record: Record) -> None:
        """Keep a record, in place of the one with the same id.

        Once begun it is done, also when the caller is cancelled, and in the order of the calls.

        Raises:
            StoreError: it could not be made durable, and was not kept.
        """
        await self._change(record.cid, record)

    async def replace(self, cid: str, record: Record) -> None:
        """Forget the record of an id and keep another in its place, both or neither; as `add`.

        Raises:
            StoreError: it could not be made durable, and was not done.
        """
        await self._change(cid, record)

    async def remove(self, cid: str) -> None:
        """Forget the record of this id, if there is one, leaving no trace of its secrets; as `add`.

        Raises:
            StoreError: it could not be made durable, and the record is still kept.
        """
        await self._change(cid, None)

    def close(self) -> None:
        """Finish what was begun, and wait for it."""
        if self._pending:
            self._commit()
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()

    async def _change(self, cid: str, record: Record | None) -> None:
        await self._room.acquire()
        done = asyncio.get_running_loop().create_future()
        self._pending.append(_Change(cid, record, done))
        if not self._committing:
            self._commit()
        await done

    def _commit(self) -> None:
        batch, self._pending = self._pending, []
        self._committing = True
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._thread, self._database.apply, batch)
        job.add_done_callback(lambda job: self._committed(batch, job.exception()))

    def _committed(self, batch: Sequence["_Change"], error: BaseException | None) -> None:
        self._committing = False
        for change in batch:
            self._room.release()
            if change.done.cancelled():
                continue
            if error is None:
                change.done.set_result(None)
            else:
                change.done.set_exception(error)
        if self._pending:
            self._commit()


@dataclass(frozen=True, slots=True)
class _Change:
    cid: str
    record: Record | None
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Secrets:
    """Those of one record: as they are, and as the host has encrypted them."""

    plain: dict[str, Secret] = field(default_factory=dict)
    sealed: dict[str, bytes] = field(default_factory=dict, repr=False)


class _Database:
    """The file, without asyncio; after `open` only the thread of the store touches it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._connection: sqlite3.Connection
        self._tainted = False  # the files may have secrets that were removed

    def open(self) -> list[Record]:
        with ExitStack() as stack:
            directory = _lock_directory(self._path.parent, stack)
            if not os.path.lexists(self._path):
                self._create(directory)
            _check_file(self._path)
            version, records = self._read()
            tainted = _has_log(self._path)  # of a crash, maybe right after a removal
            self._connection = self._connect(stack, version)
            self._tainted = tainted
            self._clean()
            self._stack = stack.pop_all()
            return records

    def close(self) -> None:
        self._clean()
        self._stack.close()

    def apply(self, changes: Sequence[_Change]) -> None:
        """Make all the changes durable, or none of them."""
        with _explained(f"{self._path} cannot be written", _FREE):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                removed = sum(map(self._make, changes))
                self._connection.execute("COMMIT")
                self._tainted |= bool(removed)
            finally:
                if self._connection.in_transaction:
                    self._tainted |= any(one.record and one.record.secrets for one in changes)
                    self._connection.execute("ROLLBACK")
                self._clean()

    def _make(self, change: _Change) -> int:
        """Make one change; returns how many secrets were removed."""
        execute = self._connection.execute
        removed = execute("DELETE FROM secrets WHERE cid = ?", (change.cid,)).rowcount
        if change.record is None or change.record.cid != change.cid:
            execute("DELETE FROM record WHERE cid = ?", (change.cid,))
        if change.record:
            execute("REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?)", _row(change.record))
            plain = {name: one.reveal() for name, one in change.record.secrets.items()}
            for sealed, values in enumerate((plain, change.record.sealed)):
                rows = ((change.record.cid, name, value, sealed) for name, value in values.items())
                self._connection.executemany(_INSERT, rows)
        return removed

    def _clean(self) -> None:
        """Leave nothing of secrets that were removed; what fails is tried at the next change."""
        if not self._tainted:
            return
        try:
            self._connection.execute("VACUUM")
            status = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._tainted = bool(status[0])  # somebody reads it; nobody can, see _SET_UP
        except sqlite3.Error as error:
            text = "%s may still have secrets that were removed: %s; %s"
            logger.warning(text, self._path, error, _FREE)

    def _create(self, directory: int) -> None:
        """Make the file under another name first, so that a crash cannot leave half of it."""
        draft = self._path.with_name(self._path.name + ".new")
        with _explained(f"{self._path} cannot be created", _FREE):
            draft.unlink(missing_ok=True)
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
                connection.executescript(_CREATE)
            draft.rename(self._path)
            os.fsync(directory)

    def _read(self) -> tuple[int, list[Record]]:
        """Check and read the file through a connection that cannot write to it.

        A log that a crash left is read too, which takes an index beside it that SQLite would leave
        behind (sqlite.org/wal.html#read_only_databases). Where there is none, `immutable` keeps
        SQLite from creating one.

        Returns:
            The format of the file, and the records.
        """
        _, _, index = _with_companions(self._path)
        uri = f"{self._path.absolute().as_uri()}?mode=ro&immutable={int(not _has_log(self._path))}"
        indexed = index.exists()
        with _explained(f"{self._path} cannot be read", _KEEP):
            try:
                with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
                    version = _check_content(connection, self._path)
                    secrets = _read_secrets(connection, version, self._path)
                    return version, _read_records(connection, secrets, self._path)
            finally:
                if index.exists() and not indexed:
                    index.unlink()

    def _connect(self, stack: ExitStack, version: int) -> sqlite3.Connection:
        with _explained(f"{self._path} cannot be opened for writing", _FREE):
            connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=0
            )
            stack.callback(connection.close)
            connection.executescript(_SET_UP)
            connection.executescript("BEGIN IMMEDIATE; ROLLBACK")
            if version < FORMAT:
                connection.executescript(_MIGRATE[version])
            return connection


@contextmanager
def _explained(what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{what}: {error}; {advice}") from error


def _with_companions(path: Path) -> tuple[Path, Path, Path]:
    """Name the file, its log and its log's index. Source: sqlite.org/wal.html."""
    return path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


def _has_log(path: Path) -> bool:
    """Say whether a crash left changes that are in the log alone, or traces of others."""
    _, log, _ = _with_companions(path)
    return log.exists() and log.stat().st_size > 0


def _lock_directory(path: Path, stack: ExitStack) -> int:
    with _explained(f"{path} cannot be used", "make it a directory of this service alone"):
        if not path.exists():
            path.mkdir(0o700)
            os.fsync(_open_directory(path.parent, stack))
        directory = _open_directory(path, stack)
        status, uid = os.fstat(directory), os.geteuid()
        if status.st_uid != uid or status.st_mode & 0o022:
            raise StoreError(f"{path} can be changed by others; give it to uid {uid} with mode 700")
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{path} is in use; stop the other storaged-connd first") from None
    return directory


def _open_directory(path: Path, stack: ExitStack) -> int:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, directory)
    return directory


def _check_file(path: Path) -> None:
    uid = os.geteuid()
    for one in filter(os.path.lexists, _with_companions(path)):
        status = one.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != uid:
            raise StoreError(f"{one} is not a regular file of uid {uid}; see who put it there")
        if status.st_mode & 0o077:
            raise StoreError(f"{one} is accessible to others; look into it, then chmod it to 600")
    if not path.stat().st_size:
        raise StoreError(f"{path} is empty; {_KEEP}")  # SQLite would delete its log


def _check_content(connection: sqlite3.Connection, path: Path) -> int:
    """Refuse what is not ours, too new or damaged; returns the format."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION:
        raise StoreError(f"{path} belongs to another program; {_KEEP}")
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if not 1 <= version <= FORMAT:
        raise StoreError(
            f"{path} has format {version}, and this version knows {FORMAT}; install the version"
            " that wrote it, or move it away to begin without any connection"
        )
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreError(f"{path} is damaged: {verdict}; {_KEEP}")
    return version


def _read_secrets(connection: sqlite3.Connection, version: int, path: Path) -> dict[str, _Secrets]:
    """Read the secrets of each connection id, in the order in which they were added."""
    found: dict[str, _Secrets] = {}
    if version not in _SELECT:
        return found
    for cid, name, kind, value, sealed in connection.execute(_SELECT[version]):
        if (type(cid), type(name), kind) != (str, str, "blob") or sealed not in {0, 1}:
            raise StoreError(f"{path} has a secret of the wrong type at {cid!r}; {_KEEP}")
        one = found.setdefault(cid, _Secrets())
        if sealed:
            one.sealed[name] = value
        else:
            one.plain[name] = Secret(value)
    return found


def _read_records(
    connection: sqlite3.Connection, secrets: Mapping[str, _Secrets], path: Path
) -> list[Record]:
    """Read the records, with their secrets; see Store.open for the order."""
    rows = {row[0]: row for row in connection.execute("SELECT * FROM record")}
    if lost := secrets.keys() - rows.keys():
        raise StoreError(f"{path} has a secret of no record, {min(lost)!r}; {_KEEP}")
    cids = [*(cid for cid in rows if cid not in secrets), *secrets]
    return [_record(rows[cid], secrets.get(cid, _Secrets()), path) for cid in cids]


def _row(record: Record) -> tuple[str | int, ...]:
    options = json.dumps(record.shown)  # a tuple becomes an array
    owner, lifetime, scope = record.owner, record.lifetime.value, record.scope
    return record.cid, record.uri, options, owner, lifetime, scope


def _record(row: tuple[str, str, str, int, str, str], secrets: _Secrets, path: Path) -> Record:
    if tuple(map(type, row)) != (str, str, str, int, str, str):
        raise StoreError(f"{path} has a column of the wrong type at {row[0]!r}; {_KEEP}")
    cid, uri, options, owner, lifetime, scope = row
    try:
        values = {_text(name): _value(value) for name, value in json.loads(options).items()}
        known = {**values, **secrets.plain}
        return Record(cid, uri, known, owner, Lifetime(lifetime), scope, secrets.sealed)
    except (ValueError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} has an unreadable record, {cid!r}: {error}; {_KEEP}") from error


def _value(value: object) -> Value:
    match value:
        case bool():
            return value
        case str():
            return _text(value)
        case int() if -MAX_INTEGER <= value <= MAX_INTEGER:
            return value
        case list() if all(isinstance(item, str) for item in value):
            return tuple(map(_text, value))
    raise ValueError("an option has a value that none can have")


def _text(text: str) -> str:
    """Refuse half a surrogate pair, which JSON can write: beside another it would become a whole.

    Raises:
        ValueError: there is one.
    """
    text.encode()
    return text
