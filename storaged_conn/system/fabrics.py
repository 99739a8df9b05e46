# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes and deletes NVMe controllers by /dev/nvme-fabrics, in a child, and names what went wrong.

Why not libnvme: what it does here is this same write, without a child, so that it holds up whoever
calls it for as long as the kernel takes; its Python module is another with each release, and what
it adds, its configuration files and its tree of the host, is what nobody needs here.

The write waits in the kernel, where not even SIGKILL ends it, until the server has answered or the
kernel's own time is over; so a child does it, which is over only when its effect is (run.py).
"""

import errno
import os
import re
import sys
from pathlib import Path
from typing import Final, Protocol

from storaged_conn.errors import (
    AttemptError,
    BusyError,
    NoAddressError,
    NoNetworkError,
    RefusedError,
    ServerRefusedError,
    TroubleError,
    UnreachableError,
    UnusableError,
)
from storaged_conn.system import fabrics_child
from storaged_conn.system.run import run

DEADLINE: Final = 90.0
"""Seconds: one command that the server never answers, and some seconds for the others. Source:
nvme_core's admin_timeout, 60 s."""

CHECK_DEADLINE: Final = 10.0

NOTICE: Final = 15
"""Seconds in which the kernel has noticed that a server is silent: three of its keep-alive times.
Source: kernel-events.md 1: 6 s."""

SS: Final = "/usr/bin/ss"

MODULE: Final = "load the kernel's module nvme-fabrics, and start this service again"

_CHILD: Final = str(Path(fabrics_child.__file__))

_ERRORS: Final[dict[int, tuple[type[AttemptError], str]]] = {
    errno.ECONNREFUSED: (ServerRefusedError, "see the server"),
    errno.ECONNRESET: (ServerRefusedError, "see the server"),
    errno.EHOSTUNREACH: (UnreachableError, "see the server and the network"),
    errno.ETIMEDOUT: (UnreachableError, "see the server and the network"),
    errno.EHOSTDOWN: (UnreachableError, "see the server and the network"),
    errno.ENETUNREACH: (NoNetworkError, "wait for the network"),
    errno.ENETDOWN: (NoNetworkError, "wait for the network"),
    errno.ENODEV: (RefusedError, "see 'host-iface' and the kernel's log"),
    errno.EADDRNOTAVAIL: (NoAddressError, "wait for the address, or give another 'host-traddr'"),
    errno.EINVAL: (TroubleError, "see the options and the kernel's log"),
    errno.EOPNOTSUPP: (UnusableError, "see the options and the kernel's log"),
    errno.ENOENT: (UnusableError, MODULE),
    errno.ENXIO: (UnusableError, MODULE),
    errno.EPERM: (UnusableError, MODULE),
    errno.EBUSY: (BusyError, "try again later"),
}

_FEATURES: Final = {
    "dhchap_secret": "DH-HMAC-CHAP (the option 'dhchap-secret')",
    "dhchap_ctrl_secret": "DH-HMAC-CHAP (the option 'dhchap-ctrl-secret')",
    "tls": "TLS for NVMe (the option 'tls')",
}


class ThereError(Exception):
    """The kernel has this controller already."""


class UnexplainedError(Exception):
    """The server said no, and the kernel does not say why."""


class Fabrics(Protocol):
    """Who makes and deletes controllers: this module, but in tests."""

    async def connect(self, line: bytes) -> str:
        """See connect."""

    async def delete(self, name: str, serial: int, *, silent: bool) -> None:
        """See delete."""

    async def hurry(self, address: str, port: int) -> None:
        """See hurry."""

    async def check(self, line: bytes) -> None:
        """See check."""


async def connect(line: bytes) -> str:
    """Make a controller.

    Args:
        line: what /dev/nvme-fabrics wants; may hold secrets.

    Returns:
        Its name, such as nvme0.

    Raises:
        AttemptError: it is not there; TimedOutError: it may be, look.
        ThereError: the kernel has one like it.
        UnexplainedError: the server said no; it may be asked why.
    """
    answer = await _child(DEADLINE, "connect", text=line)
    match = re.search(r"instance=([0-9]+)", answer)
    if not match:
        raise TroubleError(f"the kernel's answer was {answer!r}; see its log")
    return f"nvme{match[1]}"


async def delete(name: str, serial: int, *, silent: bool) -> None:
    """Delete a controller, whatever uses it, unless it is gone.

    Args:
        name: nvme0.
        serial: which of those that had this name.
        silent: its server does not answer, which the kernel may not know yet.

    Raises:
        AttemptError: it may still be there.
    """
    await _child(DEADLINE, "delete", name, str(serial), str(NOTICE if silent else 0))


async def hurry(address: str, port: int) -> None:
    """End the attempts to connect to a server that began while it was away.

    An attempt at a lost controller repeats its SYN once, and gives up 3 s after it began, so that a
    server's return may go unnoticed for as long; when it ends, the next one comes `reconnect_delay`
    later. What others try there at this moment has to be tried again, too.

    Source: drivers/nvme/host/tcp.c, nvme_tcp_alloc_queue, tcp_sock_set_syncnt(sk, 1).

    Raises:
        AttemptError: this host has no ss(8).
    """
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    argv = [SS, "--kill", "--tcp", "--numeric", "state", "syn-sent", "dst", where]
    await run(argv, deadline=CHECK_DEADLINE)


async def check(line: bytes) -> None:
    """See that this kernel could make a controller.

    Args:
        line: as for `connect`.

    Raises:
        UnusableError: it cannot.
    """
    await _child(CHECK_DEADLINE, "check", text=line)


async def _child(deadline: float, *arguments: str, text: bytes = b"") -> str:
    argv = [sys.executable, "-I", "-S", _CHILD, *arguments]
    result = await run(argv, deadline=deadline, stdin=text)
    word, _, rest = result.stdout.strip().partition(" ")
    match word:
        case "done":
            return rest
        case "errno":
            raise explain(int(rest))
        case "lacks":
            what = _FEATURES.get(rest, f"the option {rest!r}")
            raise UnusableError(f"this kernel has no {what}; leave it out, or use another kernel")
        case _:
            why = result.stderr.strip().splitlines()[-1:]
            raise TroubleError(f"the kernel could not be asked: {' '.join(why)}; see the journal")


def explain(number: int) -> Exception:
    """Make an error of the kernel's: an AttemptError, or one of this module's."""
    words = f"the kernel says: {os.strerror(number)}"
    if number == errno.EALREADY:
        return ThereError(words)
    if number not in _ERRORS:
        return UnexplainedError(f"{words}; its log may say more")
    kind, advice = _ERRORS[number]
    return kind(f"{words}; {advice}")
