# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mounts by mount(8) in a child that can be killed, and makes its answers errors of ours.

The child is mount_child.py, which says how a place is reached and what is refused. Every mount gets
`nosuid,nodev`, last, so that no option before them undoes them (CVE-2025-6019).

Where systemd runs, bus/systemd.py mounts instead; this module itself is the Mounter elsewhere.
"""

import posixpath
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from storaged_conn.errors import (
    AccessDeniedError,
    AttemptError,
    BusyError,
    MissingError,
    NameResolutionError,
    NoNetworkError,
    NotOfferedError,
    ProtocolError,
    RefusedError,
    ServerRefusedError,
    StaleError,
    TimedOutError,
    TroubleError,
    UnreachableError,
    UnusableError,
)
from storaged_conn.system import mount_child
from storaged_conn.system.run import Result, run

DEADLINE: Final = 90.0
"""Seconds to mount or unmount: a journal is replayed, caches are written back.
Source: systemd-system.conf(5), DefaultTimeoutStartSec=, what a mount unit has."""

CHECK_DEADLINE: Final = 10.0
"""Seconds to look at a source and a place; a server's time-out is not waited for."""

FORCED: Final = ("nosuid", "nodev")
"""What every mount gets, whatever was asked for."""

_MAX_WORDS: Final = 300
"""Characters of a tool's message that are kept: a line or two."""

_NOISE: Final = ("dmesg(1) may have more information", "Created symlink ")
"""In lines that say nothing of the mount; the second is of systemctl, by which mount.nfs starts
rpc.statd. Source: nfs-utils, utils/statd/start-statd."""

_CHILD: Final = str(Path(mount_child.__file__))

_OWN: Final[dict[int, type[AttemptError]]] = {
    mount_child.MISSING: MissingError,
    mount_child.REFUSED: RefusedError,
    mount_child.BUSY: BusyError,
    mount_child.TROUBLE: TroubleError,
    mount_child.UNUSABLE: UnusableError,
}

_WORDS: Final[tuple[tuple[str, type[AttemptError], str], ...]] = (
    ("does not exist", MissingError, "it is taken up when it is there"),
    # Also of what is not there: so the source was looked at before and is looked at again.
    ("Can't lookup blockdev", RefusedError, "name a block device or an image"),
    ("unknown filesystem type", UnusableError, "install what brings it"),
    ("might need a /sbin/mount", UnusableError, "install what brings it"),
    ("target is busy", BusyError, "see fuser(1) for who uses it"),
    ("mount point busy", BusyError, "unmount it there first"),
    ("already mounted", BusyError, "unmount it there first"),
    ("Can't open blockdev", BusyError, "see what else uses the device"),
    ("wrong fs type", RefusedError, "check what is on it, the type and the mount-options"),
    ("Unknown parameter", RefusedError, "check the mount-options"),
    ("not a block device", RefusedError, "name a block device or an image"),
    ("must be superuser", RefusedError, "run the service as root"),
    ("reason given by server: No such file", NotOfferedError, "see what the server exports"),
    ("access denied by server", AccessDeniedError, "see whom the server exports it to, and 'sec'"),
    ("mount.nfs: Operation not permitted", AccessDeniedError, "see whom the server exports it to"),
    ("mount.nfs: Connection refused", ServerRefusedError, "see that the server runs there"),
    ("mount.nfs: Network is unreachable", NoNetworkError, "wait for the network"),
    ("mount.nfs: No route to host", UnreachableError, "see the server and the network"),
    ("mount.nfs: Connection timed out", TimedOutError, "see the server and the network"),
    ("mount.nfs: mount system call failed", TimedOutError, "see that the server answers"),
    ("mount.nfs: Stale file handle", StaleError, "have the server export it anew"),
    ("rotocol is not supported", ProtocolError, "see which versions the server has"),
    ("mount.nfs: Protocol not supported", ProtocolError, "see which versions the server has"),
    ("mount.nfs: Resource temporarily unavailable", NameResolutionError, "see DNS"),
    ("mount.nfs: Failed to resolve server", NameResolutionError, "see DNS and /etc/hosts"),
    ("mount.nfs: No such device", UnusableError, "this kernel lacks NFS; install its modules"),
    ("mount.nfs: No such process", UnusableError, "start tlshd(8), which 'xprtsec' wants"),
    ("rpc.statd is not running", UnusableError, "start rpc-statd, or give 'nolock'"),
    ("incorrect mount option", RefusedError, "check the mount-options"),
    ("is not a directory", RefusedError, "name a directory"),
    ("device is busy", BusyError, "see fuser(1) for who uses it"),
)
"""What the tools say, what it means, and what to do.
Source: util-linux 2.38.1 and 2.41, nfs-utils 2.6.2 and 2.8.3, as captured in tests/data/mount-* and
nfs-*; for what cannot be captured utils/mount/error.c of the latter; for the missing process
net/handshake/tlshd.c of Linux, tls_client_hello_x509."""

_USAGE: Final = 1
"""The exit status for a wrong invocation or a lack of permission. Source: mount(8), Exit status."""


@dataclass(frozen=True, slots=True)
class Place:
    """A mount point.

    Attributes:
        root: a directory that the administrator vouches for.
        path: the rest of the way, without a leading slash.
    """

    root: str
    path: str

    @property
    def target(self) -> str:
        """The whole path."""
        return f"{self.root.rstrip('/')}/{self.path}"


class Mounter(Protocol):
    """Who mounts: this module, or systemd."""

    async def mount(self, source: str, fstype: str, options: Sequence[str], place: Place) -> None:
        """Mount a file system.

        Raises:
            AttemptError: it is not mounted; TimedOutError: it may be, look.
        """

    async def bind(self, source: str, place: Place, *, read_only: bool) -> None:
        """Mount a directory in a second place, without what is mounted below it.

        Raises:
            AttemptError: it is not mounted; TimedOutError: it may be, look.
        """

    async def unmount(self, place: Place, mount_id: int) -> None:
        """Unmount what has this id; never by force, and never what somebody still uses.

        Raises:
            AttemptError: it is still mounted; TimedOutError: it may be, look.
        """

    async def detach(self, place: Place) -> None:
        """Take away what is there from those who use it, because its server does not answer.

        The table shows that it is gone long before this ends: see mount_child.detach. What is left
        to do then is `tidy`.

        Raises:
            AttemptError: it may still be mounted, look.
        """


async def mount(source: str, fstype: str, options: Sequence[str], place: Place) -> None:
    """See Mounter."""
    flags = ",".join((*options, *FORCED))
    await _child(DEADLINE, "mount", place.root, place.path, fstype, flags, source)


async def bind(source: str, place: Place, *, read_only: bool) -> None:
    """See Mounter."""
    flags = ",".join((*(["ro"] if read_only else []), *FORCED))
    await _child(DEADLINE, "bind", place.root, place.path, flags, source)


async def unmount(place: Place, mount_id: int) -> None:
    """See Mounter."""
    await _child(DEADLINE, "umount", place.root, place.path, str(mount_id))


async def detach(place: Place) -> None:
    """See Mounter."""
    await _child(DEADLINE, "detach", place.root, place.path)


async def prepare(source: str, place: Place) -> None:
    """Make a place ready for systemd to mount on.

    Raises:
        AttemptError: it is not fit for it, or what is to be mounted is not there.
    """
    await _child(CHECK_DEADLINE, "prepare", place.root, place.path, source)


async def prepare_bind(source: str, place: Place) -> list[str]:
    """Make a place ready for systemd to mount a directory on.

    Returns:
        The mount options that restrict what the directory is on.

    Raises:
        AttemptError: it is not fit for it, or the directory is not there.
    """
    kept = await _child(CHECK_DEADLINE, "prepare_bind", place.root, place.path, source)
    return kept.split(",") if kept else []


async def tidy(place: Place) -> None:
    """Remove a mount point that nothing is mounted on, if it is as we make it.

    Raises:
        AttemptError: that cannot be known.
    """
    await _child(CHECK_DEADLINE, "tidy", place.root, place.path)


async def check(source: str, fstype: str, place: Place) -> None:
    """Find out what would stop a mount, or without a type a bind mount, and change nothing.

    Raises:
        AttemptError: that would.
    """
    await _child(CHECK_DEADLINE, "check", place.root, place.path, fstype, source)


async def _child(deadline: float, verb: str, root: str, path: str, *arguments: str) -> str:
    argv = [sys.executable, "-I", "-S", _CHILD, verb, root, path, *arguments]
    result = await run(argv, deadline=deadline)
    if result.returncode:
        holder = posixpath.dirname(Place(root, path).target)
        words = result.stderr.replace(mount_child.HERE, holder)
        raise explain(replace(result, stderr=words))
    return result.stdout


def explain(result: Result) -> AttemptError:
    """Make an error of how mount(8), umount(8) or the child ended."""
    words = _last_words(result)
    if own := _OWN.get(result.returncode):
        return own(words)
    for fragment, error, advice in _WORDS:
        if fragment in words:
            return error(f"{words}; {advice}")
    if result.returncode == _USAGE:
        return RefusedError(f"{words}; check the mount-options")
    return TroubleError(f"{words}; the kernel's log may say more")


def _last_words(result: Result) -> str:
    lines = (line.strip() for line in result.stderr.splitlines())
    said = (line for line in lines if line and not any(noise in line for noise in _NOISE))
    text = " ".join("".join(filter(str.isprintable, line)) for line in said)
    text = text.replace(": .: ", ": ").rstrip(".")
    return text[-_MAX_WORDS:] or f"mount ended with status {result.returncode}"
