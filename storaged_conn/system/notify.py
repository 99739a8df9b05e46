# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells the service manager how it goes, by its socket and without libsystemd."""

import os
import socket
from contextlib import suppress


def notify(text: str) -> None:
    """Send one message; does nothing where no service manager listens, and never fails or waits.

    Args:
        text: one or more lines of NAME=VALUE, such as READY=1 or STATUS=3 connected.

    Source: sd_notify(3), which also gives the protocol for those who do not use the library.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(0)
        with suppress(OSError):  # gone, or too busy to take one more: not our trouble
            sender.sendto(text.encode(errors="replace"), address)


def watchdog_interval() -> float | None:
    """Say how often to send WATCHDOG=1: half of what the service manager waits for it.

    Returns:
        Seconds, or None where it waits for none from this process.

    Source: sd_watchdog_enabled(3).
    """
    pid = os.environ.get("WATCHDOG_PID", "")
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or pid not in {"", str(os.getpid())}:
        return None
    return int(microseconds) / 2_000_000 or None
