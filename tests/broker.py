# SPDX-License-Identifier: LGPL-2.1-or-later
"""A private dbus-broker without systemd, for what dbus-daemon would keep from the service.

dbus-broker opens no socket and reads no configuration. Its controller, usually
dbus-broker-launch, hands both over on a socket that it inherits: D-Bus without a bus, with one call
of AddListener(object path, listening socket, policy). It ends when its controller goes away.

Source: dbus-broker 33: src/broker/controller-dbus.c (AddListener), src/bus/policy.c (the policy's
type, and its order), src/dbus/sasl.c (the exchange may be sent blind), src/launch/launcher.c.
"""

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dbus_next import Message, Variant

from tests.live import DEADLINE, Address

# Verdicts are (allowed, priority, ...); "" and 0 match everything; last: 0 to U64_MAX descriptors.
OWN: Final = "a(btbs)"
TRANSMIT: Final = "a(btssssuutt)"
BATCH: Final = f"(bt{OWN}{TRANSMIT}{TRANSMIT})"
POLICY: Final = f"(a(u{BATCH})a(buu{BATCH})a(ss)bs)"
EVERYBODY: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
ANY_NAME: Final = [[True, 1, True, ""]]
ANY_MESSAGE: Final = [[True, 1, "", "", "", "", 0, 0, 0, U64_MAX]]
ALLOW_ALL: Final = [[[EVERYBODY, [True, 1, ANY_NAME, ANY_MESSAGE, ANY_MESSAGE]]], [], [], False, ""]

SASL: Final = b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
SASL_ANSWERS: Final = 3
HEADER_BYTES: Final = 16
METHOD_RETURN: Final = 2

# What dbus-broker-launch gives each user: 64 connections of 8 MiB, 64 descriptors, 256 matches.
LIMITS: Final = ["--max-bytes=536870912", "--max-fds=4096", "--max-matches=16384"]


@contextmanager
def broker_bus() -> Iterator[Address]:
    """Run a dbus-broker on which everything is allowed.

    Yields:
        Its address. The socket may be used by every user.
    """
    with tempfile.TemporaryDirectory(prefix="storaged-bus-") as name:
        path = Path(name, "bus")
        Path(name).chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener, _broker() as (controller, process):
            listener.bind(str(path))
            path.chmod(0o666)
            listener.listen()
            listener.settimeout(0)  # dbus-broker accepts until EAGAIN
            _add_listener(controller, listener)
            yield Address(f"unix:path={path}").of(process)


@contextmanager
def _broker() -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE)
    argv = ["dbus-broker", f"--controller={theirs.fileno()}", f"--machine-id={'0' * 31}1", *LIMITS]
    with ours, theirs, subprocess.Popen(argv, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        try:
            yield ours, process
        finally:
            process.kill()


def _add_listener(controller: socket.socket, listener: socket.socket) -> None:
    call = Message(
        path="/org/bus1/DBus/Broker",
        interface="org.bus1.DBus.Broker",
        member="AddListener",
        signature="ohv",
        body=["/org/bus1/DBus/Listener/0", 0, Variant(POLICY, ALLOW_ALL)],
        unix_fds=[listener.fileno()],
        serial=1,
    )
    controller.sendall(SASL)
    socket.send_fds(controller, [call._marshall(negotiate_unix_fd=True)], [listener.fileno()])
    with controller.makefile("rb") as answers:
        greeting = [answers.readline() for _ in range(SASL_ANSWERS)]
        header = answers.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or header[1] != METHOD_RETURN:
        raise RuntimeError(f"dbus-broker refused its listener: {greeting} {header!r}")
