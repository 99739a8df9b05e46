# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real mounts for tests: an image to mount, a ground to mount on, and nothing left afterwards."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storaged_conn.system.mountinfo import Mount, MountTable
from storaged_conn.system.run import ENVIRONMENT

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
