# SPDX-License-Identifier: LGPL-2.1-or-later
"""Another machine with storage: an NFS server in a network namespace, and faults to play.

    with Server() as server:
        directory = server.export("/export")     # put files in there
        server.start()                           # nfs://10.9.0.2/export, nfs://[fd09::2]/export
        server.link(up=False)                    # silence

Number N is at 10.9.N.2 and fd09:0:0:N::2, behind the guest's interface `vethN`; a person finds it
as `ip netns exec srvN ...`. One that loses its power is silent, and has forgotten what its clients
had open when it is back: link(up=False), stop(), start(), link(up=True).
"""

import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from tests.vm.guest.units import tool

NFS: Final = 2049
"""Source: RFC 7530, 3.1."""

GRACE: Final = 10
"""Seconds; also the lease. The least that the kernel takes. Source: fs/nfsd/nfsctl.c,
__nfsd4_write_time()."""

THREADS: Final = 4

# Its interface is a switch with one port, the other end of the client's cable: so it can go down
# while the client's carrier stays. Addresses are kept then, as somebody would put them back.
# Whatever a daemon keeps or finds by a path is its own: sockets and pid files in /run, the state in
# /var/lib/nfs. nfsdcld knows the clients from before a restart: without it nobody may open a file
# for GRACE after each start. It and the others are in the background when they are ready.
# Source: ip-sysctl.rst, keep_addr_on_down; nfsdcld(8).
SETUP: Final = """\
set -eu
ip -batch - <<END
link set lo up
link add eth0 type bridge mcast_snooping 0
link set port master eth0 up
address add {address}/24 dev eth0
END
echo 1 >/proc/sys/net/ipv6/conf/eth0/keep_addr_on_down
ip link set eth0 up
ip address add {address_6}/64 dev eth0 nodad
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/rpc_pipefs
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
mount --bind {state} /var/lib/nfs
mount -t nfsd nfsd /proc/fs/nfsd
rpcbind
nfsdcld
rpc.mountd
"""

DROP: Final = """
table inet faults {
    chain everything { type filter hook input priority 0; policy drop; }
}
"""


class Server:
    """A machine that serves NFS 3, 4.0, 4.1 and 4.2 over TCP; a context manager.

    Attributes:
        address, address_6: where it is.
        interface: the client's end of the wire.
    """

    def __init__(self, number: int = 0) -> None:
        """Prepare it.

        Args:
            number: 0 to 255, one that no other server has meanwhile.
        """
        self.name = f"srv{number}"
        self.interface = f"veth{number}"
        self.address, self.address_6 = f"10.9.{number}.2", f"fd09:0:0:{number:x}::2"
        self._mine, self._mine_6 = f"10.9.{number}.1", f"fd09:0:0:{number:x}::1"
        self._exports: dict[str, Path] = {}

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._top = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/var/lib/guest"))
            undo.callback(shutil.rmtree, self._top)
            self._top.chmod(0o755)
            tool("ip", "netns", "add", self.name)
            undo.callback(tool, "ip", "netns", "delete", self.name)
            self._plug()
            self._init = self._first_process(undo)
            self._boot()
            undo.callback(self.stop)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def run(self, *argv: str, text: str | None = None) -> str:
        """Run a tool on that machine that must succeed; gives its output.

        It sees the guest's files, but the machine's own processes, interfaces and mounts.
        """
        namespaces = ("--net", "--mount", "--pid")
        return tool("nsenter", f"--target={self._init}", *namespaces, *argv, text=text)

    # what it serves

    def export(self, path: str, *options: str, clients: str = "*") -> Path:
        """Export a new directory under a path; gives where its files are in the guest.

        Args:
            options: of exports(5), added to `rw,no_root_squash,no_subtree_check,insecure`.
            clients: as in exports(5).
        """
        directory = self._top / "files" / path.strip("/")
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
        directory.rename(tempfile.mkdtemp(prefix="replaced-", dir=self._top))
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
        """Stop to serve: connections are closed, and new ones refused."""
        self.run("rpc.nfsd", "0")

    def link(self, *, up: bool) -> None:
        """Set its interface up or down, behind a switch: nobody else notices."""
        self.run("ip", "link", "set", "eth0", "up" if up else "down")

    def cable(self, *, up: bool) -> None:
        """Plug or pull the client's cable: `interface` has its carrier or not."""
        self.run("ip", "link", "set", "port", "up" if up else "down")

    def own_link(self, *, up: bool) -> None:
        """Set the client's interface up or down, as its administrator does."""
        tool("ip", "link", "set", self.interface, "up" if up else "down")

    def drop(self) -> None:
        """Lose all that arrives there, while the wire is as good as ever."""
        self.run("nft", "-f", "-", text=DROP)

    def deliver(self) -> None:
        """Undo `drop`."""
        self.run("nft", "delete", "table", "inet", "faults")

    # how it is made

    def _plug(self) -> None:
        _commands(
            f"link add {self.interface} type veth peer name port netns {self.name}",
            f"address add {self._mine}/24 dev {self.interface}",
        )
        Path(f"/proc/sys/net/ipv6/conf/{self.interface}/keep_addr_on_down").write_text("1")
        _commands(
            f"link set {self.interface} up",
            f"address add {self._mine_6}/64 dev {self.interface} nodad",
        )

    def _first_process(self, undo: ExitStack) -> str:
        """Start the process at whose end all others end too; gives its id."""
        enter = ("nsenter", f"--net=/run/netns/{self.name}")
        unshare = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child")
        first = ("sh", "-c", "echo; exec sleep infinity")
        # Its errors are for us: our own stderr would stay open with it, and its reader wait.
        argv = [*enter, *unshare, *first]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        undo.callback(process.communicate)
        undo.callback(process.kill)
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return child

    def _boot(self) -> None:
        state = self._top / "nfs"
        shutil.copytree("/var/lib/nfs", state, ignore=shutil.ignore_patterns("rpc_pipefs"))
        (state / "nfsdcld").mkdir(exist_ok=True)
        setup = SETUP.format(state=state, address=self.address, address_6=self.address_6)
        self.run("sh", "-c", setup)


def _commands(*commands: str) -> None:
    tool("ip", "-batch", "-", text="\n".join(commands))
