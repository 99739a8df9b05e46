# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all mounts have in common: where they go, whose they are, how they come and go.

A mount of ours is at `mnt/KEY` in the runtime directory, or at the option `mountpoint` below one of
the configured roots. The table of mounts is the truth about what is there; the marks say what of it
is ours, and nothing else is ever unmounted. Without `mountpoint`, a mount of the same storage that
somebody else made will do, and is adopted as it is.
"""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from storaged_conn.core.model import Absent, Foreign, Observation, Present, Target, Topic, Value
from storaged_conn.drivers.base import Driver
from storaged_conn.drivers.marks import PLANNED, Marks
from storaged_conn.drivers.paths import check_path
from storaged_conn.errors import (
    AttemptError,
    BusyError,
    InvalidArgumentError,
    TimedOutError,
    TroubleError,
)
from storaged_conn.system import mounting
from storaged_conn.system.mountinfo import Mount, MountTable
from storaged_conn.system.mounting import FORCED, Mounter, Place

NOTHING: Final = -1
"""The id of no mount."""


class MountDriver(Driver):
    """Connects storage by mounting it."""

    options: ClassVar[Mapping[str, str]] = {"mountpoint": "s", "read-only": "b"}

    def __init__(
        self,
        table: MountTable,
        runtime_dir: Path,
        roots: Sequence[Path],
        mounter: Mounter = mounting,
    ) -> None:
        """Take up what is ours from before.

        Args:
            table: kept up to date by whoever watches it.
            runtime_dir: emptied at boot.
            roots: where `mountpoint` may be; absolute. The way to them may have links, since the
                administrator named them; the way below them may not.
            mounter: who mounts.

        Raises:
            OSError: the runtime directory cannot be used.
        """
        self.table = table
        self.mounter = mounter
        self._marks = Marks(runtime_dir / "ours" / type(self).__name__)
        own = runtime_dir / "mnt"
        own.mkdir(mode=0o755, parents=True, exist_ok=True)
        own.chmod(0o755)  # past the umask: others must get through to the mounts
        self._own_root = os.path.realpath(own)
        nearest_first = sorted(map(str, roots), key=len, reverse=True)
        self._roots = {root: os.path.realpath(root) for root in nearest_first}

    # what differs

    @abstractmethod
    def matches(self, target: Target, mount: Mount) -> bool:
        """Say whether this mount shows this storage, whoever mounted it."""

    @abstractmethod
    async def attach(self, target: Target, place: Place) -> None:
        """Mount it there.

        Raises:
            AttemptError: it is not mounted; TimedOutError: it may be, look.
        """

    def resembles(self, target: Target, mount: Mount) -> bool:
        """Say whether this mount may be what we were about to mount where it is."""
        return self.is_ours_by_place(mount) or self.matches(target, mount)

    async def detach(self, target: Target, place: Place, mount: Mount) -> None:
        """Unmount what is ours.

        Raises:
            AttemptError: it is still mounted; TimedOutError: it may be, look.
        """
        await self.mounter.unmount(place, mount.id)

    def candidates(self, target: Target) -> Iterator[Mount]:
        """Give the mounts elsewhere that would do, whoever made them."""
        yield from ()

    # what is the same

    def topics(self, target: Target) -> frozenset[Topic]:
        """See Driver."""
        return frozenset({Topic("mount", self.place(target).target)})

    async def observe(self, target: Target) -> Observation:
        """See Driver; looks the table up as it was read last."""
        return self.look_up(target)

    async def connect(self, target: Target) -> Present:
        """See Driver."""
        self.table.refresh()
        found = self.look_up(target)
        if isinstance(found, Present):
            return found
        place = self.place(target)
        if self._marks.get(key_of(target)) is PLANNED:
            await self._call_off(place)
        await self._clear(target, place)
        self._marks.plan(key_of(target))
        try:
            await self.attach(target, place)
        except AttemptError:
            if not self._came_about(target, place):  # a time-out may come just after the mount
                raise
        return self._confirm(target, place)

    async def disconnect(self, target: Target, present: Present | None) -> None:
        """See Driver; what others mounted stays, and so does what others still use."""
        self.table.refresh()
        place = self.place(target)
        if self._marks.get(key_of(target)):
            await self._call_off(place)
        mount = self._own(target, place)
        if mount:
            await self._remove(target, place, mount)
        elif self._is_hidden(target):
            raise BusyError(f"{place.target}: our mount is hidden by another; unmount that one")
        self._marks.drop(key_of(target))

    def look_up(self, target: Target) -> Observation:
        """Find the storage in the table as it was read last."""
        if self.table.mounts is None:
            return None
        place = self.place(target)
        mount = self.table.at(place.target)
        if mount and self._is_own(target, mount):
            return self.present(mount, ours=True) if self._is_sound(target, mount) else Absent()
        if mount and self.matches(target, mount) and not self._marks.has(mount):
            return self.present(mount, ours=False)  # one of ours for other options is ending
        if not target.option("mountpoint"):
            for other in self.candidates(target):
                if self.is_seen(other) and not self._marks.has(other):
                    return self.present(other, ours=False)
        return Absent()

    def present(self, mount: Mount, *, ours: bool | None = None) -> Present:
        """Describe a mount; whose it is, the marks know where it is not said."""
        beneath = (flag for flag in mount.super_options if flag not in {"ro", "rw"})
        info: dict[str, Value] = {
            "fstype": mount.fstype,
            "source": mount.names[0],
            "options": tuple(dict.fromkeys((*mount.options, *beneath))),
            "readOnly": mount.read_only,
        }
        return Present(
            f"mount-{mount.id}",
            ours=self._marks.has(mount) if ours is None else ours,
            mountpoint=mount.target,
            devices=(mount.node,) if mount.node else (),
            info=info,
        )

    def listed(self, uri: str, mount: Mount) -> Foreign:
        """Describe a mount that may be anybody's."""
        return Foreign(uri, self.present(mount), Topic("mount", mount.target))

    def place(self, target: Target) -> Place:
        """Say where a target is mounted if we mount it."""
        point = target.option("mountpoint")
        if isinstance(point, str):
            root = next(root for root in self._roots if _is_below(point, root))
            return Place(self._roots[root], point[len(root.rstrip("/")) + 1 :])
        return Place(self._own_root, key_of(target))

    def is_seen(self, mount: Mount) -> bool:
        """Say whether nothing is mounted over it."""
        return self.table.at(mount.target) is mount

    def is_ours_by_place(self, mount: Mount) -> bool:
        """Say whether it is where nobody but us mounts."""
        return _is_below(mount.target, self._own_root)

    def read_common(self, options: Mapping[str, Value]) -> dict[str, Value]:
        """Check the options that all mounts have, and leave out what is the default.

        Raises:
            InvalidArgumentError: it names the option.
        """
        common: dict[str, Value] = {}
        if "mountpoint" in options:
            common["mountpoint"] = self._read_mountpoint(str(options["mountpoint"]))
        if options.get("read-only"):
            common["read-only"] = True
        return common

    def _read_mountpoint(self, point: str) -> str:
        check_path(point, "options: 'mountpoint'")
        if not any(_is_below(point, root) for root in self._roots):
            allowed = ", ".join(sorted(self._roots)) or "no directory"
            raise InvalidArgumentError(f"options: 'mountpoint' must be a path below {allowed}")
        return point

    def _own(self, target: Target, place: Place) -> Mount | None:
        """Give what is at the place if it is ours, in whatever condition.

        Raises:
            TroubleError: the table cannot be read.
        """
        if self.table.mounts is None:
            raise TroubleError("the table of mounts cannot be read; see that /proc is mounted")
        mount = self.table.at(place.target)
        return mount if mount and self._is_own(target, mount) else None

    def _is_own(self, target: Target, mount: Mount) -> bool:
        mark = self._marks.get(key_of(target))
        if mark is PLANNED:  # a crash or a time-out came between: whatever is there now is it
            return self.resembles(target, mount)
        return mark is not None and mark.is_of(mount)

    def _is_sound(self, target: Target, mount: Mount) -> bool:
        """Say whether what is ours was finished, and still shows what it did."""
        mark = self._marks.get(key_of(target))
        if mark is None or mark is PLANNED:
            return not mount.deleted and set(FORCED) <= set(mount.options)
        return mount.root == mark.root

    def _is_hidden(self, target: Target) -> bool:
        mark = self._marks.get(key_of(target))
        mounts = self.table.mounts or {}
        return mark is not None and any(mark.is_of(mount) for mount in mounts.values())

    async def _call_off(self, place: Place) -> None:
        """End what an earlier run that was killed has left where nothing is mounted.

        What PID 1 may still be mounting would come about when nobody remembers that it is ours; and
        the mount point stays if the kill came after the unmount.
        """
        if self.table.mounts is not None and not self.table.at(place.target):
            await self.mounter.unmount(place, NOTHING)
            self.table.refresh()

    async def _clear(self, target: Target, place: Place) -> None:
        """Make the place free of what is ours and unfit for use.

        Raises:
            BusyError: it is not ours, or still in use.
        """
        mount = self._own(target, place)
        if mount:
            await self._remove(target, place, mount)
        elif other := self.table.at(place.target):
            raise BusyError(
                f"{place.target}: {other.names[0]!r} is mounted there; unmount it, or choose"
                " another mountpoint"
            )

    async def _remove(self, target: Target, place: Place, mount: Mount) -> None:
        try:
            await self.detach(target, place, mount)
        except TimedOutError:
            self.table.refresh()
            if self._own(target, place):
                raise
        self.table.refresh()
        if self._own(target, place):
            raise BusyError(f"{place.target} is mounted more than once; it is unmounted again")

    def _came_about(self, target: Target, place: Place) -> bool:
        self.table.refresh()
        mount = self.table.at(place.target)
        if mount is None and self.table.mounts is not None:
            self._marks.drop(key_of(target))
        return mount is not None and set(FORCED) <= set(mount.options)

    def _confirm(self, target: Target, place: Place) -> Present:
        self.table.refresh()
        if mount := self.table.at(place.target):
            self._marks.keep(key_of(target), mount)
        found = self.look_up(target)
        if isinstance(found, Present):
            return found
        raise TroubleError(f"{place.target}: mounted, and not in the table; is it hidden?")


def key_of(target: Target) -> str:
    """Give a target's name in the runtime directory: always the same, and never another's."""
    text = json.dumps([target.uri, target.options])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_below(path: str, root: str) -> bool:
    return path != root and path.startswith(f"{root.rstrip('/')}/")
