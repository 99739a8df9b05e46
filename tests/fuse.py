# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file system whose root answers as a test says, or not at all, as that of a dead server.

Source: include/uapi/linux/fuse.h.
"""

import asyncio
import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct
from typing import Final

from tests.mounts import table, tool

IN: Final = Struct("=IIQQIIII")
OUT: Final = Struct("=IiQ")
INIT_OUT: Final = Struct("=IIIIHHII36x")
ATTR_OUT: Final = Struct("=QII6Q10I")
GETATTR, FORGET, INIT, STATX = 3, 2, 26, 52
ENOSYS: Final = 38
NOSUID_NODEV: Final = 6


class Silence:
    """The file system.

    Attributes:
        answer: an error number, 0 for success, or None for silence.
        asked: set with every question about the root.
    """

    def __init__(self, place: Path) -> None:
        self.answer: int | None = 0
        self.asked = asyncio.Event()
        self.place = place
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._waiting: list[int] = []
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"silence", bytes(place), b"fuse", NOSUID_NODEV, options):
            raise OSError(ctypes.get_errno(), "mount")
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def speak(self, answer: int) -> None:
        """Answer what waits, and what comes."""
        self.answer = answer
        for unique in self._waiting:
            self._reply(unique, answer)
        self._waiting.clear()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        if table().at(str(self.place)):
            tool("umount", "--lazy", self.place)

    def _read(self) -> None:
        try:
            request = os.read(self._fd, 1 << 17)
        except OSError:
            return  # it was unmounted, or who asked was killed
        _, opcode, unique, *_ = IN.unpack_from(request)
        if opcode == INIT:
            self._send(unique, 0, INIT_OUT.pack(7, 31, 0, 0, 1, 1, 4096, 1))
        elif opcode == GETATTR:
            self.asked.set()
            if self.answer is None:
                self._waiting.append(unique)
            else:
                self._reply(unique, self.answer)
        elif opcode != FORGET:
            self._send(unique, ENOSYS)

    def _reply(self, unique: int, error: int) -> None:
        root = ATTR_OUT.pack(
            0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0
        )
        self._send(unique, error, b"" if error else root)

    def _send(self, unique: int, error: int, body: bytes = b"") -> None:
        with suppress(FileNotFoundError):  # who asked was killed
            os.write(self._fd, OUT.pack(OUT.size + len(body), -error, unique) + body)


@contextmanager
def silence(place: Path) -> Iterator[Silence]:
    """Mount it."""
    place.mkdir()
    mounted = Silence(place)
    try:
        yield mounted
    finally:
        mounted.close()
