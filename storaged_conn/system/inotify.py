# SPDX-License-Identifier: LGPL-2.1-or-later
"""inotify(7) by way of the C library: Python has no module for it."""

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
MOVE_SELF: Final = 0x800
UNMOUNT: Final = 0x2000
OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
ONLYDIR: Final = 0x1000000
DONT_FOLLOW: Final = 0x2000000
"""Source: linux/inotify.h."""

_HEAD: Final = struct.Struct("iIII")
_BUFFER: Final = 64 * 1024
"""Bytes read at once: some hundred events; inotify(7) wants room for one, 272 bytes, at least."""


class Event(NamedTuple):
    """One event.

    Attributes:
        watch: the number that `add` gave, -1 with OVERFLOW.
        name: of the entry in the directory, empty for the directory itself.
    """

    watch: int
    mask: int
    name: str


class Inotify:
    """One inotify instance; its `fd` is readable when there are events."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            OSError: there are too many already.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, path: str, mask: int) -> int:
        """Watch a path; the same inode always has the same number.

        Raises:
            OSError: it is not there, or no directory, or there are too many watches.
        """
        return self._checked(self._libc.inotify_add_watch(self.fd, os.fsencode(path), mask))

    def remove(self, watch: int) -> None:
        """Stop watching, or do nothing if the kernel has stopped already."""
        self._libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> Iterator[Event]:
        """Give the events that are there."""
        try:
            raw = os.read(self.fd, _BUFFER)
        except BlockingIOError:
            return
        place = 0
        while place < len(raw):
            watch, mask, _, length = _HEAD.unpack_from(raw, place)
            place += _HEAD.size + length
            name = raw[place - length : place].rstrip(b"\0")
            yield Event(watch, mask, os.fsdecode(name))

    def close(self) -> None:
        """Close it; all its watches end."""
        os.close(self.fd)

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result
