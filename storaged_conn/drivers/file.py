# SPDX-License-Identifier: LGPL-2.1-or-later
"""`file:///DIR`: a local directory, connected while it is there.

With `mountpoint` it is mounted there a second time (a bind mount), and connected while that is so.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from storaged_conn.core.model import Absent, Observation, Present, Target, Topic, Value
from storaged_conn.drivers.mount import MountDriver, key_of
from storaged_conn.drivers.paths import decode, straighten
from storaged_conn.errors import AttemptError, InvalidArgumentError, MissingError, TroubleError
from storaged_conn.system.mountinfo import Mount
from storaged_conn.system.mounting import Place, check
from storaged_conn.system.run import run

STAT: Final = "/usr/bin/stat"

STAT_DEADLINE: Final = 5.0
"""Seconds to look at a directory; one that does not answer for so long is on a dead server."""

_GONE: Final = ("No such file or directory", "Not a directory")
"""What stat(1) says of a path that is not there. Source: strerror(3), ENOENT and ENOTDIR."""


class FileDriver(MountDriver):
    """Sees to it that a directory is there; there is nothing to connect or disconnect."""

    def serves(self, scheme: str) -> bool:
        """See Driver."""
        return scheme == "file"

    def schemes(self) -> tuple[str, ...]:
        """See Driver."""
        return ("file",)

    def parse(self, uri: str, options: Mapping[str, Value]) -> Target:
        """See Driver."""
        path = _read_path(uri.partition(":")[2])
        common = self.read_common(options)
        if "read-only" in common and "mountpoint" not in common:
            raise InvalidArgumentError("options: 'read-only' needs a 'mountpoint'")
        return Target(f"file://{quote(os.fsencode(path))}", tuple(sorted(common.items())))

    def topics(self, target: Target) -> frozenset[Topic]:
        """See Driver."""
        directory = Topic("directory", _path(target))
        return frozenset({directory}) | (super().topics(target) if _is_bind(target) else set())

    async def observe(self, target: Target) -> Observation:
        """See Driver."""
        if _is_bind(target):
            self.table.refresh()  # nothing tells that the directory under a mount was removed
            return self.look_up(target)
        try:
            return await _find(target)
        except MissingError:
            return Absent()
        except AttemptError:
            return None

    async def connect(self, target: Target) -> Present:
        """See Driver."""
        return await super().connect(target) if _is_bind(target) else await _find(target)

    async def disconnect(self, target: Target, present: Present | None) -> None:
        """See Driver."""
        if _is_bind(target):
            await super().disconnect(target, present)

    async def validate(self, target: Target) -> None:
        """See Driver."""
        if not _is_bind(target):
            await _find(target)
        elif not isinstance(await self.observe(target), Present):
            await check(_path(target), "", self.place(target))

    def look_up(self, target: Target) -> Observation:
        """See MountDriver; what it shows is the directory, and not the device that it is on."""
        found = super().look_up(target)
        if not isinstance(found, Present):
            return found
        kept = {name: found.info[name] for name in ("options", "readOnly")}
        return replace(found, devices=(), info={"path": _path(target), **kept})

    def matches(self, target: Target, mount: Mount) -> bool:
        """See MountDriver; a bind mount shows the file system that the directory is on."""
        path = _path(target)
        below = self.table.covering(path)
        if below is None:
            return False
        root = below.root.rstrip("/") + path[len(below.target.rstrip("/")) :].rstrip("/")
        return (mount.device, mount.root) == (below.device, root or "/")

    async def attach(self, target: Target, place: Place) -> None:
        """See MountDriver."""
        await self.mounter.bind(_path(target), place, read_only=bool(target.option("read-only")))


def _is_bind(target: Target) -> bool:
    return target.option("mountpoint") is not None


def _path(target: Target) -> str:
    return os.fsdecode(unquote_to_bytes(target.uri.removeprefix("file://")))


def _read_path(quoted: str) -> str:
    if quoted.startswith("//"):
        host, slash, rest = quoted[2:].partition("/")
        if host.lower() not in {"", "localhost"}:
            raise InvalidArgumentError(f"uri: file: is for this host's directories, not {host!r}")
        quoted = slash + rest
    if not quoted.startswith("/"):
        raise InvalidArgumentError("uri: write it as file:///DIR, with an absolute path")
    return straighten(decode(quoted, "uri: the path"))


async def _find(target: Target) -> Present:
    """Look at the directory, in a child: a look at a dead server's directory hangs.

    Raises:
        MissingError: it is not there, or no directory.
        AttemptError: that cannot be known.
    """
    path = _path(target)
    argv = [STAT, "-L", "--format=%F", "--", path]
    result = await run(argv, deadline=STAT_DEADLINE)
    words = result.stderr.strip()
    if result.returncode and not words.endswith(_GONE):
        raise TroubleError(f"{path!r} cannot be looked at: {words!r}")
    if result.returncode or result.stdout.strip() != "directory":
        raise MissingError(f"{path!r} is not there, or no directory; make it")
    return Present(f"file-{key_of(target)}", ours=False, info={"path": path})
