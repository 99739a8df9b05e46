# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the journal gets to hear, at a socket of its kind."""

import io
import logging
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged_conn.runner import PUBLIC
from storaged_conn.system.journal import FIELDS, MESSAGE_IDS, Fields, JournalHandler, encode

CATALOG = Path(__file__).parents[2] / "systemd/storaged-conn.catalog"


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.settimeout(0)
        yield listening


def log(path: Path, text: str, fields: Fields = ()) -> str:
    """Log one warning; gives what went to the stream."""
    stream = io.StringIO()
    handler = JournalHandler(stream, path)
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, text, (), None)
    record.__dict__[FIELDS] = fields
    handler.emit(record)
    handler.close()
    return stream.getvalue()


def test_journald_is_told_with_fields_and_nothing_is_said_twice(
    journald: socket.socket, tmp_path: Path
) -> None:
    assert not log(tmp_path / "socket", "two\nlines", [("STORAGE_CID", "a"), ("STORAGE_CID", "b")])
    text = b"MESSAGE\n" + struct.pack("<Q", 9) + b"two\nlines\n"
    rest = b"PRIORITY=4\nSYSLOG_IDENTIFIER=storaged-connd\nSTORAGE_CID=a\nSTORAGE_CID=b\n"
    assert journald.recv(4096) == text + rest


def test_without_journald_the_stream_has_it_with_its_priority(tmp_path: Path) -> None:
    assert log(tmp_path / "none", "two\nlines") == "<4>two\n<4>lines\n"


def test_what_is_too_long_for_journald_or_too_much_is_in_the_stream(
    journald: socket.socket, tmp_path: Path
) -> None:
    long = "x" * 10_000_000
    assert log(tmp_path / "socket", long) == f"<4>{long}\n"
    with pytest.raises(BlockingIOError):
        journald.recv(1)
    said = ""
    while not said:  # until the queue is full
        said = log(tmp_path / "socket", "once more")
    assert said == "<4>once more\n"


def test_a_value_cannot_pass_for_a_field() -> None:
    assert encode([("STORAGE_CID", "a\nMESSAGE_ID=b")]) == (
        b"STORAGE_CID\n" + struct.pack("<Q", 14) + b"a\nMESSAGE_ID=b\n"
    )
    assert encode([("STORAGE_CID", "\udcff")]) == b"STORAGE_CID=?\n"


def test_every_state_s_news_is_in_the_catalog_and_no_other() -> None:
    ids = re.findall("^-- ([0-9a-f]{32})$", CATALOG.read_text(), re.M)
    assert sorted(ids) == sorted(MESSAGE_IDS.values())
    assert len(set(ids)) == len(ids)
    assert set(PUBLIC.values()) == MESSAGE_IDS.keys()


def test_the_catalog_can_be_read(tmp_path: Path) -> None:
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    (place / CATALOG.name).write_bytes(CATALOG.read_bytes())
    tool = ("journalctl", f"--root={tmp_path}")
    done = subprocess.run([*tool, "--update-catalog"], capture_output=True, text=True, check=True)
    assert not done.stderr
    listed = subprocess.run([*tool, "--list-catalog"], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == len(MESSAGE_IDS)
