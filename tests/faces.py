# SPDX-License-Identifier: LGPL-2.1-or-later
"""Private system buses with the rules that a distribution ships, and those of the service."""

import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from tests.live import DEADLINE

TOP: Final = Path(__file__).parents[1]
SYSTEM: Final = Path("/usr/share/dbus-1/system.conf")
"""What denies and allows before any service's own rules. Source: dbus-daemon(1)."""

# dbus-broker-launch wants a socket as systemd passes it, sd_listen_fds(3), and the journal's. The
# latter is nobody's here, in a mount namespace with an empty /run that ends with the process.
LAUNCH: Final = """
import os, socket, subprocess, sys
listener, config, address = sys.argv[1:]
os.dup2(int(listener), 3)
os.set_inheritable(3, True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
os.makedirs("/run/systemd/journal")
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("/run/systemd/journal/socket")
journal.set_inheritable(True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), DBUS_SYSTEM_BUS_ADDRESS=address)
os.execvp("dbus-broker-launch", ["dbus-broker-launch", "--scope=system", "--config-file", config])
"""


def write_config(directory: Path) -> Path:
    """Write a system bus's configuration that listens in a directory."""
    policies = ElementTree.parse(SYSTEM).getroot().iterfind("policy")
    config = directory / "bus.conf"
    config.write_text(
        f"<busconfig><type>system</type><listen>unix:path={directory}/bus</listen>"
        "<auth>EXTERNAL</auth>"
        + "".join(ElementTree.tostring(policy, encoding="unicode") for policy in policies)
        + f"<include>{TOP}/dbus/org.storage.Connection.conf</include></busconfig>"
    )
    return config


@contextmanager
def daemon_bus() -> Iterator[str]:
    """Run a dbus-daemon of the system type; yields its address."""
    with _directory() as directory:
        argv = ["dbus-daemon", f"--config-file={write_config(directory)}", "--nofork"]
        with subprocess.Popen([*argv, "--print-address=1"], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                readable, _, _ = select.select([process.stdout], [], [], DEADLINE)
                assert readable, "dbus-daemon does not start"
                yield process.stdout.readline().decode().strip()
            finally:
                process.kill()


@contextmanager
def broker_bus() -> Iterator[str]:
    """Run a dbus-broker of the system scope through its launcher, as root; yields its address."""
    with _directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        address = f"unix:path={directory}/bus"
        listener.bind(f"{directory}/bus")
        os.chmod(f"{directory}/bus", 0o666)
        listener.listen()
        listener.settimeout(0)
        passed = listener.fileno()
        config = str(write_config(directory))
        argv = ["unshare", "--mount", sys.executable, "-c", LAUNCH, str(passed), config, address]
        with subprocess.Popen(argv, pass_fds=[passed]) as process:
            listener.close()
            try:
                yield address
            finally:
                process.kill()


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="storaged-bus-") as name:
        os.chmod(name, 0o755)
        yield Path(name)
