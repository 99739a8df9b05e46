# SPDX-License-Identifier: LGPL-2.1-or-later
"""Another machine that serves NFS.

    with Server() as server:
        directory = server.export("/export")     # put files in there
        server.start()                           # nfs://10.9.0.2/export, nfs://[fd09::2]/export
        server.link(up=False)                    # silence

One that loses its power is silent, and has forgotten what its clients had open when it is back:
link(up=False), stop(), start(), link(up=True).
"""

import shutil
import tempfile
from pathlib import Path
from typing import Final

from tests.vm.guest.machine import Machine

NFS: Final = 2049
"""Source: RFC 7530, 3.1."""

GRACE: Final = 10
"""Seconds; also the lease. The least that the kernel takes. Source: fs/nfsd/nfsctl.c,
__nfsd4_write_time()."""

THREADS: Final = 4

# Whatever a daemon keeps or finds by a path is its own: its state is in /var/lib/nfs.
# nfsdcld knows the clients from before a restart: without it nobody may open a file for GRACE after
# each start. It and the others are in the background when they are ready. Source: nfsdcld(8).
SETUP: Final = """\
set -eu
mkdir /run/rpc_pipefs
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
mount --bind {state} /var/lib/nfs
mount -t nfsd nfsd /proc/fs/nfsd
rpcbind
nfsdcld
rpc.mountd
"""


class Server(Machine):
    """A machine that serves NFS 3, 4.0, 4.1 and 4.2 over TCP."""

    def __init__(self, number: int = 0) -> None:
        """See Machine."""
        super().__init__(number)
        self._exports: dict[str, Path] = {}

    def boot(self) -> None:
        """See Machine."""
        state = self.files / "nfs"
        shutil.copytree("/var/lib/nfs", state, ignore=shutil.ignore_patterns("rpc_pipefs"))
        (state / "nfsdcld").mkdir(exist_ok=True)
        self.run("sh", "-c", SETUP.format(state=state))

    # what it serves

    def export(self, path: str, *options: str, clients: str = "*") -> Path:
        """Export a new directory under a path; gives where its files are in the guest.

        Args:
            options: of exports(5), added to `rw,no_root_squash,no_subtree_check,insecure`.
            clients: as in exports(5).
        """
        directory = self.files / "files" / path.strip("/")
        directory.mkdir(parents=True)
        self._exports[path] = directory
        self.run("mkdir", "-p", path)
        self.run("mount", "--bind", str(directory), path)
        words = ["rw", "no_root_squash", "no_subtree_check", "insecure", *options]
        self.run("exportfs", "-o", ",".join(words), f"{clients}:{path}")
        return directory

    def withdraw(self, path: str, clients: str = "*") -> None:
        """Export a path no longer; its files stay."""
        self.run("exportfs", "-u", f"{clients}:{path}")

    def replace(self, path: str) -> Path:
        """Serve another directory under the same path: every handle of the old one is stale."""
        directory = self._exports[path]
        # It is kept elsewhere: a new directory might get the same inode number, so the same handle.
        directory.rename(tempfile.mkdtemp(prefix="replaced-", dir=self.files))
        directory.mkdir()
        self.run("umount", "--lazy", path)
        self.run("mount", "--bind", str(directory), path)
        self.run("exportfs", "-f")
        return directory

    # what happens to it

    def start(self) -> None:
        """Start to serve; returns when clients are answered."""
        times = (f"--grace-time={GRACE}", f"--lease-time={GRACE}")
        self.run("rpc.nfsd", *times, str(THREADS))

    def stop(self) -> None:
        """See Machine."""
        self.run("rpc.nfsd", "0")
