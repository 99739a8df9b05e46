# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a block device is called, without touching the device.

Everything here is /dev, /sys and /run, none of which can block on storage.
"""

import os
import posixpath
import re
import stat
from pathlib import Path
from typing import Final

UDEV: Final = Path("/run/udev/data")

_MAX_LINKS: Final = 40
"""Source: path_resolution(7)."""

_LOOP: Final = re.compile(r"/dev/(loop[0-9]+)")


def names_of(source: str) -> tuple[tuple[str, ...], str]:
    """Give all names of the source of a mount, the one to show first, and the device's node.

    Returns:
        The image behind a loop device, the node, the source itself, and the links that udev made;
        and the node, or an empty string where the source is no block device that is there.
    """
    if not source.startswith("/dev/"):
        return (source,), ""
    node = device_node(source)
    number = _block_device(node)
    if number is None:
        return tuple(dict.fromkeys((node, source))), ""
    loop = _LOOP.fullmatch(node)
    image = _backing_file(loop[1]) if loop else None
    return tuple(dict.fromkeys((image or node, node, source, *links_to(number)))), node


def device_node(path: str) -> str:
    """Follow the links of a path in /dev, such as /dev/disk/by-uuid/X, as long as they stay there.

    A path that leads elsewhere, or is not in /dev, is given back as it is: only in /dev is a
    look-up known not to block.
    """
    straight = posixpath.normpath(path)
    if not straight.startswith("/dev/"):
        return path
    here, todo = "/dev", straight.split("/")[:1:-1]
    for _ in range(_MAX_LINKS + len(todo)):
        if not todo:
            return here
        here = f"{here}/{todo.pop()}"
        try:
            link = os.readlink(here)
        except OSError:  # no link, or nothing there
            continue
        full = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
        if not full.startswith("/dev/"):
            break
        here, todo = "/dev", todo + full.split("/")[:1:-1]
    return path


def _block_device(node: str) -> str | None:
    """Give major:minor of a block device's node, or None where it is none."""
    try:
        found = os.lstat(node)  # follows no link, so that it stays in /dev
    except OSError:
        return None
    device = found.st_rdev
    return f"{os.major(device)}:{os.minor(device)}" if stat.S_ISBLK(found.st_mode) else None


def _backing_file(loop: str) -> str | None:
    """Give the image of a loop device. Source: Documentation/ABI/testing/sysfs-block-loop."""
    try:
        raw = Path("/sys/block", loop, "loop/backing_file").read_bytes()
    except OSError:
        return None
    return os.fsdecode(raw.removesuffix(b"\n"))


def links_to(device: str, database: Path = UDEV) -> list[str]:
    """Give the links that udev made to a block device, or none where there is no udev.

    Source: systemd, src/libsystemd/sd-device/device-private.c, device_update_db: S:LINK.
    """
    try:
        lines = (database / f"b{device}").read_bytes().splitlines()
    except OSError:
        return []
    return [f"/dev/{os.fsdecode(line[2:])}" for line in lines if line.startswith(b"S:")]
