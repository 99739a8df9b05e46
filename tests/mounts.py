# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real mounts for tests: an image to mount, a ground to mount on, and nothing left afterwards."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from storaged_conn.system.mountinfo import Mount, MountTable
from storaged_conn.system.run import ENVIRONMENT

RENAME_EXCHANGE: Final = 2
"""Source: linux/fs.h; see renameat2(2)."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def tool(*argv: str | Path) -> None:
    """Run a tool that must succeed."""
    subprocess.run(list(map(str, argv)), check=True, capture_output=True, env=ENVIRONMENT)


def make_image(path: Path) -> Path:
    """Make an ext4 file system in a file."""
    with path.open("wb") as file:
        file.truncate(4 << 20)
    tool("mkfs.ext4", "-q", path)
    return path


def table() -> MountTable:
    """Read the table of mounts."""
    fresh = MountTable()
    fresh.refresh()
    assert fresh.mounts is not None
    return fresh


def mounts_below(path: Path) -> list[Mount]:
    """Give what is mounted below a directory, what came last first."""
    mounts = table().mounts or {}
    found = [mount for mount in mounts.values() if mount.target.startswith(f"{path}/")]
    return found[::-1]


@contextmanager
def cleaned(ground: Path) -> Iterator[Path]:
    """Unmount everything below a directory at the end, whatever happened."""
    try:
        yield ground
    finally:
        while left := mounts_below(ground):
            tool("umount", "--lazy", "--no-canonicalize", left[0].target.removesuffix("//deleted"))


@contextmanager
def swapping(path: Path, victim: Path) -> Iterator[None]:
    """Exchange a directory for a link and back, all the time: only root could do that here.

    In the end it is what it was.
    """
    link = path.with_name("link")
    link.symlink_to(victim)
    libc, stop = ctypes.CDLL(None), threading.Event()

    def swap() -> None:
        libc.renameat2(-1, bytes(path), -1, bytes(link), RENAME_EXCHANGE)

    def swap_on() -> None:
        while not stop.is_set():
            swap()

    thread = threading.Thread(target=swap_on)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if path.is_symlink():
            swap()
        link.unlink()


def lazily_unmount(mounted: Mount) -> None:
    """Unmount what may be renamed at any moment."""
    with suppress(subprocess.CalledProcessError):
        tool("umount", "--lazy", "--no-canonicalize", mounted.target)
