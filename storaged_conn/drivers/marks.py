# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which mounts are ours: known after kill -9, forgotten at a reboot, exactly as mounts are.

One file per mount in the runtime directory. It is there, and empty, before mount(8) starts; once
the mount is seen it says which one it is; it goes after the unmount.
"""

import json
from pathlib import Path
from typing import Final, NamedTuple

from storaged_conn.system.mountinfo import Mount


class Mark(NamedTuple):
    """A mount of ours, as it was in the table when it was new.

    The kernel gives an id out again at once, so that the rest is compared too; but whoever unmounts
    what is ours and mounts the same in the same place may be taken for us.

    Attributes:
        root: what may change for the same mount, when its directory is renamed or removed.
    """

    id: int
    target: str
    device: str
    fstype: str
    source: str
    root: str

    def is_of(self, mount: Mount) -> bool:
        """Say whether this is the mark of this mount."""
        return self[:-1] == _mark(mount)[:-1]


PLANNED: Final = Mark(0, "", "", "", "", "")
"""We were about to mount; whether it came about is not known."""


class Marks:
    """The marks in one directory, whose only writer this is."""

    def __init__(self, directory: Path) -> None:
        """Read what is there.

        Raises:
            OSError: the directory cannot be made or read.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._marks = {file.name: _read(file) for file in directory.iterdir()}

    def get(self, key: str) -> Mark | None:
        """Give the mark, which may be PLANNED, or None."""
        return self._marks.get(key)

    def has(self, mount: Mount) -> bool:
        """Say whether any mark is for this mount."""
        return any(mark.is_of(mount) for mark in self._marks.values())

    def plan(self, key: str) -> None:
        """Say that a mount will be made."""
        self._write(key, PLANNED)

    def keep(self, key: str, mount: Mount) -> None:
        """Say what it became."""
        self._write(key, _mark(mount))

    def drop(self, key: str) -> None:
        """Say that it is gone."""
        self._marks.pop(key, None)
        (self._directory / key).unlink(missing_ok=True)

    def _write(self, key: str, mark: Mark) -> None:
        self._marks[key] = mark
        (self._directory / key).write_text("" if mark is PLANNED else json.dumps(mark))


def _mark(mount: Mount) -> Mark:
    return Mark(mount.id, mount.target, mount.device, mount.fstype, mount.source, mount.root)


def _read(file: Path) -> Mark:
    """Read a mark; one that was cut off by a crash is a plan."""
    try:
        number, *texts = json.loads(file.read_text())
        target, device, fstype, source, root = map(str, texts)
        return Mark(int(number), target, device, fstype, source, root)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return PLANNED
