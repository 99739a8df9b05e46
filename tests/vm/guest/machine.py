# SPDX-License-Identifier: LGPL-2.1-or-later
"""Another machine, in a network namespace, and faults of the network to play.

Number N is at 10.9.N.2 and fd09:0:0:N::2, behind the guest's interface `vethN`; a person finds it
as `ip netns exec srvN ...`.
"""

import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from tests.vm.guest.units import tool

# Its interface is a switch with one port, the other end of the client's cable: so it can go down
# while the client's carrier stays. Addresses are kept then, as somebody would put them back.
# Sockets and pid files are its own, and so are its processes.
# Source: ip-sysctl.rst, keep_addr_on_down.
SETUP: Final = """\
set -eu
ip -batch - <<END
link set lo up
link add eth0 type bridge mcast_snooping 0
link set port master eth0 up
address add {address}/24 dev eth0
address add {second}/24 dev eth0
END
echo 1 >/proc/sys/net/ipv6/conf/eth0/keep_addr_on_down
ip link set eth0 up
ip address add {address_6}/64 dev eth0 nodad
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
"""

DROP: Final = """
table inet faults {
    chain everything { type filter hook input priority 0; policy drop; }
}
"""


class Machine:
    """A machine without services; a context manager.

    Attributes:
        address, second, address_6: where it is.
        interface: the client's end of the wire.
    """

    def __init__(self, number: int = 0) -> None:
        """Prepare it.

        Args:
            number: 0 to 255, one that no other machine has meanwhile.
        """
        self.name = f"srv{number}"
        self.interface = f"veth{number}"
        self.address, self.address_6 = f"10.9.{number}.2", f"fd09:0:0:{number:x}::2"
        self.second = f"10.9.{number}.3"
        self._mine, self._mine_6 = f"10.9.{number}.1", f"fd09:0:0:{number:x}::1"

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self.files = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/var/lib/guest"))
            undo.callback(shutil.rmtree, self.files)
            self.files.chmod(0o755)
            tool("ip", "netns", "add", self.name)
            undo.callback(tool, "ip", "netns", "delete", self.name)
            self._plug()
            self._init = self._first_process(undo)
            addresses = {"address": self.address, "second": self.second}
            self.run("sh", "-c", SETUP.format(**addresses, address_6=self.address_6))
            self.boot()
            undo.callback(self.stop)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def boot(self) -> None:
        """Prepare what it will serve."""

    def stop(self) -> None:
        """Stop to serve: connections are closed, and new ones refused."""

    def enter(self, *argv: str) -> tuple[str, ...]:
        """Give a command that runs another one on that machine.

        It sees the guest's files, but the machine's own processes, interfaces and mounts.
        """
        return ("nsenter", f"--target={self._init}", "--net", "--mount", "--pid", *argv)

    def run(self, *argv: str, text: str | None = None) -> str:
        """Run a tool on that machine that must succeed; gives its output."""
        return tool(*self.enter(*argv), text=text)

    # what happens to it

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


def _commands(*commands: str) -> None:
    tool("ip", "-batch", "-", text="\n".join(commands))
