# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who on this host uses a disk: whoever takes it away would pull it from under them.

Everything here is /sys and /proc. A program that has opened the disk itself is not found.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from storaged_conn.system.mountinfo import Mounts

SYS: Final = Path("/sys")
SWAPS: Final = Path("/proc/swaps")


def who_uses(disk: str, mounts: Mounts, sys: Path = SYS, swaps: Path = SWAPS) -> str:
    """Say what uses a disk or one of its partitions; nothing if nobody does.

    Args:
        disk: such as sda.
        mounts: of this host.
        sys: where sysfs is.
        swaps: see proc(5).
    """
    parts = dict(_parts(disk, sys))
    nodes = {f"/dev/{name}" for name in parts}
    for mount in mounts.values():
        if mount.device in parts.values() or mount.node in nodes:
            return f"{mount.target} is mounted from it"
    for name in parts:
        for holder in _entries(sys / "class/block" / name / "holders"):
            return f"{holder.name} is on it"
    with suppress(OSError):
        for line in swaps.read_text().splitlines()[1:]:
            if line.split()[:1] and line.split()[0] in nodes:
                return f"{line.split()[0]} is swapped to"
    return ""


def _parts(disk: str, sys: Path) -> Iterator[tuple[str, str]]:
    """Give the disk and its partitions with their major:minor. Source: sysfs-block."""
    top = sys / "class/block" / disk
    for path in (top, *_entries(top)):
        if path == top or (path / "partition").exists():
            with suppress(OSError):
                yield path.name, (path / "dev").read_text().strip()


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []
