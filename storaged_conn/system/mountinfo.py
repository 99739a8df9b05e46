# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is mounted: the kernel's table, read whole, and kept until it is read again.

Everything here is memory, /proc, /sys and the device nodes in /dev, none of which can block on
storage. No path of a mounted file system is ever touched.

Source: proc(5), /proc/pid/mountinfo.
"""

import os
import re
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from storaged_conn.system.devices import names_of

MOUNTINFO: Final = Path("/proc/self/mountinfo")

HOST: Final = Path("/proc/1/mountinfo")
"""The host's own, whose ids outlive a mount namespace of ours. Source: mount_namespaces(7)."""

MAX_BYTES: Final = 64 << 20
"""A larger table is unknown. Source: proc(5), fs.mount-max: 100 000 mounts, of 80 bytes mostly."""

READS: Final = 3
"""Times that a table is read that changes meanwhile; the event of its last change will follow."""

DELETED: Final = "//deleted"
"""Ends the root of a mount whose directory was removed. Source: fs/d_path.c, dentry_path."""

LOCAL: Final = frozenset(
    {"bcachefs", "btrfs", "devtmpfs", "overlay", "ramfs", "rootfs", "tmpfs", "zfs"}
)
"""File systems of this host's own that have no device number of a disk."""

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the table.

    Attributes:
        id: unique now; the kernel gives the smallest free number to the next mount.
        parent: the id of the mount that it is mounted on.
        device: major:minor, as in st_dev.
        root: which directory of the file system is mounted.
        target: where.
        source: as it was given to mount(2).
        names: all that the source is called: the image behind a loop device, the device's node, the
            source itself, the links that udev made to the node. The one to show is the first.
        node: of the block device, if it is on one.
    """

    id: int
    parent: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]
    names: tuple[str, ...] = ()
    node: str = ""

    @property
    def read_only(self) -> bool:
        """Nothing can be written through this mount."""
        return "ro" in self.options or "ro" in self.super_options

    @property
    def local(self) -> bool:
        """It is in memory or on a block device: no server and no user's process answers for it."""
        if self.fstype.startswith("fuse"):
            return False
        return not self.device.startswith("0:") or self.fstype in LOCAL

    @property
    def whole(self) -> bool:
        """It shows a whole file system, or the whole of a btrfs subvolume."""
        return self.root == "/" or f"subvol={self.root}" in self.super_options

    @property
    def deleted(self) -> bool:
        """The directory that it shows was removed."""
        return self.root.endswith(DELETED)

    @property
    def key(self) -> tuple[int, str, str, str, str, str]:
        """What a mount keeps for its life: the same key in two tables is the same mount."""
        return (self.id, self.device, self.root, self.target, self.fstype, self.source)


Mounts = Mapping[int, Mount]
Listener = Callable[[Sequence[Mount], Sequence[Mount]], None]


def parse(raw: bytes) -> dict[int, Mount]:
    """Read a table; a line that is none is left out."""
    found: dict[int, Mount] = {}
    for line in raw.split(b"\n"):
        with suppress(ValueError):
            mount = _parse_line(line)
            found[mount.id] = mount
    return found


def compare(old: Mounts, new: Mounts) -> tuple[list[Mount], list[Mount]]:
    """Say what came or changed its options, and what went."""
    before = {mount.key: mount for mount in old.values()}
    after = {mount.key: mount for mount in new.values()}
    added = [mount for key, mount in after.items() if before.get(key) != mount]
    return added, [mount for key, mount in before.items() if key not in after]


class MountTable:
    """The table as it was read last, with its look-ups.

    Attributes:
        path: of the kernel's file.
        mounts: by their ids; None is unknown, which is not the same as empty.
        listeners: are told, by whoever refreshes, what came or changed and what went.
    """

    def __init__(self, path: Path = MOUNTINFO) -> None:
        """Nothing is known before `refresh`."""
        self.path = path
        self.mounts: Mounts | None = None
        self.listeners: list[Listener] = []
        self._raw: bytes | None = None
        self._children: dict[tuple[int, str], Mount] = {}
        self._named: dict[str, list[Mount]] = {}

    def refresh(self) -> None:
        """Read the table again, and tell the listeners if it differs."""
        raw = _read(self.path)
        if raw == self._raw:
            return
        self._raw, old = raw, self.mounts
        self.mounts = None if raw is None else _with_names(parse(raw), old or {})
        self._index()
        added, removed = compare(old or {}, self.mounts or old or {})
        if added or removed:
            for listener in tuple(self.listeners):
                listener(added, removed)

    def at(self, target: str) -> Mount | None:
        """Give the mount that is seen at a mount point: the topmost one, if nothing hides it."""
        mount = self.covering(target)
        return mount if mount and mount.target == target else None

    def covering(self, path: str) -> Mount | None:
        """Give the mount that a path without links leads into: walk down as the kernel does."""
        here, found, seen = 0, None, {0}
        for prefix in _prefixes(path):
            while (child := self._children.get((here, prefix))) and child.id not in seen:
                here, found = child.id, child
                seen.add(here)
        return found

    def named(self, name: str) -> Sequence[Mount]:
        """Give the mounts of a source by any of its names, in the order of the table."""
        return self._named.get(name, ())

    def _index(self) -> None:
        self._children, self._named = {}, {}
        mounts = self.mounts or {}
        for mount in mounts.values():
            parent = mount.parent if mount.parent in mounts and mount.parent != mount.id else 0
            self._children[parent, mount.target] = mount  # 0: the parent is out of our sight
            for name in mount.names:
                self._named.setdefault(name, []).append(mount)


def _read(path: Path) -> bytes | None:
    """Read the table until it did not change meanwhile: it comes in pieces of a page."""
    raw = b""
    try:
        for _ in range(READS):
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
                changes = select.poll()
                changes.register(file, select.POLLPRI)
                if not changes.poll(0):
                    break
    except OSError:
        return None
    return raw if len(raw) <= MAX_BYTES else None


def _parse_line(line: bytes) -> Mount:
    # Not split(): a source may be empty, and then two spaces stand side by side.
    left, dash, right = line.partition(b" - ")
    fields, rest = left.split(b" "), right.split(b" ")
    if not dash or len(fields) < 6 or len(rest) < 3:  # noqa: PLR2004  # proc(5) counts them
        raise ValueError(line)
    device, root, target, options = map(_text, fields[2:6])
    if not target.startswith("/"):
        raise ValueError(line)
    fstype, source, super_options = map(_text, rest[:3])
    return Mount(
        int(fields[0]),
        int(fields[1]),
        device,
        root,
        target,
        tuple(options.split(",")),
        fstype,
        source,
        tuple(super_options.split(",")),
    )


def _text(field: bytes) -> str:
    """Undo the kernel's escapes. Source: fs/proc_namespace.c, mangle and show_mountinfo.

    Raises:
        ValueError: it has a NUL, which no path has.
    """
    raw = _OCTAL.sub(lambda code: bytes([int(code[1], 8) & 0xFF]), field)
    if b"\0" in raw:
        raise ValueError(field)
    return os.fsdecode(raw)


def _prefixes(path: str) -> Iterator[str]:
    yield "/"
    end = path.find("/", 1)
    while end > 0:
        yield path[:end]
        end = path.find("/", end + 1)
    if path != "/":
        yield path


def _with_names(mounts: dict[int, Mount], old: Mounts) -> dict[int, Mount]:
    """Name the sources; a mount that was there keeps its names, even if its device node is gone."""
    for number, mount in mounts.items():
        before = old.get(number)
        if before and before.key == mount.key:
            mounts[number] = replace(mount, names=before.names, node=before.node)
        else:
            names, node = names_of(mount.source)
            mounts[number] = replace(mount, names=names, node=node)
    return mounts
