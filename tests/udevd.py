# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real udevd, where none runs, and loop devices for it to handle."""

import os
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storaged_conn.system.run import ENVIRONMENT
from tests.live import DEADLINE
from tests.mounts import tool

PROGRAM: Final = "/usr/lib/systemd/systemd-udevd"

RULES: Final = ("60-block.rules", "60-persistent-storage.rules")
"""All that it may do: no more, or it would rename the interfaces of other tests."""

# In a mount namespace of its own, so that nothing of it is seen elsewhere, except for the links in
# /dev: that is a devtmpfs, the same in all namespaces.
PREPARE: Final = f"""
set -e
mount -t tmpfs udevd /run
mkdir /run/udev /run/rules /run/none
cd /usr/lib/udev/rules.d
cp {" ".join(RULES)} /run/rules
mount --bind /run/rules /usr/lib/udev/rules.d
[ ! -d /etc/udev/rules.d ] || mount --bind /run/none /etc/udev/rules.d
exec {PROGRAM}
"""


@dataclass(frozen=True)
class Udevd:
    """One that runs.

    Attributes:
        inside: what to put before a command so that it runs where udevd's files are seen.
    """

    inside: tuple[str, ...] = ()

    def settle(self) -> None:
        """Return when it has handled all that has happened, and sent its messages."""
        tool(*self.inside, "udevadm", "settle", f"--timeout={DEADLINE:.0f}")


@contextmanager
def running() -> Iterator[Udevd]:
    """Give the udevd of this machine, or one for the time of the test."""
    if Path("/run/udev/control").exists():
        yield Udevd()
        return
    with _dev_as_it_was(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind("")  # an abstract address, see unix(7), Autobind feature
        env = ENVIRONMENT | {"NOTIFY_SOCKET": f"@{notify.getsockname()[1:].decode()}"}
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", PREPARE]
        with subprocess.Popen(argv, env=env) as process:
            try:
                _wait_until_ready(process, notify)
                yield Udevd(("nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "--"))
            finally:
                process.terminate()


def _wait_until_ready(process: subprocess.Popen[bytes], notify: socket.socket) -> None:
    ended = os.pidfd_open(process.pid)
    try:
        readable, _, _ = select.select([notify.fileno(), ended], [], [], DEADLINE)
        if notify.fileno() not in readable or b"READY=1" not in notify.recv(4096):
            raise RuntimeError("udevd did not become ready; what it printed is above")
    finally:
        os.close(ended)


@contextmanager
def _dev_as_it_was() -> Iterator[None]:
    """Remove the links that are new in the end: udevd leaves them when it ends."""
    before = _links()
    try:
        yield
    finally:
        for path in sorted(_links() - before, reverse=True):  # what is in a directory comes first
            if path.is_symlink():
                path.unlink()
            else:
                path.rmdir()


def _links() -> set[Path]:
    tops = [Path("/dev/disk"), Path("/dev/block")]
    return {path for top in tops if top.is_dir() for path in (top, *top.rglob("*"))}


@contextmanager
def attached(image: Path, *options: str) -> Iterator[Path]:
    """Attach an image to a loop device, and detach it if it still is in the end."""
    argv = ["losetup", "--find", "--show", *options, str(image)]
    try:
        found = subprocess.run(argv, check=True, capture_output=True, text=True)
        yield Path(found.stdout.strip())
    finally:
        detach(image)


def detach(image: Path) -> None:
    """Detach an image from its loop devices."""
    argv = ["losetup", "--noheadings", "--output", "NAME", "--associated", str(image)]
    for node in subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split():
        tool("losetup", "--detach", node)


def uuid_of(device: Path) -> str:
    """Read the name of the file system that is on a device or an image."""
    argv = ["blkid", "--probe", "--match-tag", "UUID", "--output", "value", str(device)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
