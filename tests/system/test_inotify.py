# SPDX-License-Identifier: LGPL-2.1-or-later
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged_conn.system.inotify import CREATE, DELETE, IGNORED, ONLYDIR, Event, Inotify


@pytest.fixture
def inotify() -> Iterator[Inotify]:
    opened = Inotify()
    yield opened
    opened.close()


def test_names_come_as_they_are(inotify: Inotify, tmp_path: Path) -> None:
    watch = inotify.add(str(tmp_path), CREATE | DELETE)
    names = ["x", "é" * 100, os.fsdecode(b"\xff\n")]
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / "x").unlink()
    seen = list(inotify.read())
    assert seen == [*(Event(watch, CREATE, name) for name in names), Event(watch, DELETE, "x")]


def test_there_may_be_nothing_to_read(inotify: Inotify) -> None:
    assert list(inotify.read()) == []


def test_a_directory_has_one_number_however_often_it_is_added(
    inotify: Inotify, tmp_path: Path
) -> None:
    assert inotify.add(str(tmp_path), CREATE) == inotify.add(f"{tmp_path}/.", CREATE)


def test_what_cannot_be_watched_is_an_os_error(inotify: Inotify, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError):
        inotify.add(str(tmp_path / "none"), CREATE)
    with pytest.raises(NotADirectoryError):
        inotify.add(str(tmp_path / "file"), CREATE | ONLYDIR)


def test_to_remove_a_watch_twice_is_fine(inotify: Inotify, tmp_path: Path) -> None:
    watch = inotify.add(str(tmp_path), CREATE)
    inotify.remove(watch)
    inotify.remove(watch)
    (tmp_path / "x").write_text("")
    assert list(inotify.read()) == [Event(watch, IGNORED, "")]
