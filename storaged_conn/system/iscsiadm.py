# SPDX-License-Identifier: LGPL-2.1-or-later
"""iscsiadm(8): has iscsid log in and out. No secret is ever among its arguments.

It finds what it needs, secrets too, in the node record that was written before (iscsi_nodes.py).
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from storaged_conn.errors import (
    AttemptError,
    AuthenticationError,
    BusyError,
    InitiatorError,
    InternalError,
    MissingError,
    RefusedError,
    TimedOutError,
    TroubleError,
    UnreachableError,
    UnusableError,
)
from storaged_conn.system.iscsi import Where
from storaged_conn.system.run import Result, run
from storaged_conn.system.sentinel import Address

PROGRAM: Final = next(
    (path for path in ("/usr/sbin/iscsiadm", "/sbin/iscsiadm") if Path(path).exists()),
    "/usr/sbin/iscsiadm",
)

MARGIN: Final = 20.0
"""Seconds beside what iscsid itself allows for a login or a logout: it starts iscsid where that is
not running, and waits for up to 8 s for that. Source: open-iscsi usr/iscsid_req.c, MAXSLEEP."""

LOGOUT: Final = 15.0
"""Seconds that iscsid allows. Source: iscsid.conf, node.conn[0].timeo.logout_timeout."""

_FOLDER: Final = re.compile(r" from (/\S+)/ifaces folder")
"""Source: open-iscsi libopeniscsiusr/iface.c, iscsi_ifaces_get."""

EXISTS: Final = 15
NOT_FOUND: Final = frozenset({2, 21})
"""ISCSI_ERR_SESS_EXISTS; ISCSI_ERR_SESS_NOT_FOUND and NO_OBJS_FOUND."""

ERRORS: Final[Mapping[int, tuple[type[AttemptError], str]]] = {
    1: (TroubleError, "iscsiadm failed"),
    2: (MissingError, "there is no such session"),
    3: (TroubleError, "this host has no memory left for it"),
    4: (UnreachableError, "the connection to the target failed"),
    5: (TroubleError, "the login failed"),
    6: (TroubleError, "the node database cannot be used"),
    7: (InternalError, "iscsiadm was called in a wrong way"),
    8: (UnreachableError, "the target does not answer"),
    9: (InitiatorError, "iscsid or the kernel failed"),
    10: (TroubleError, "the logout failed"),
    11: (TimedOutError, "the target has not answered in time"),
    12: (UnusableError, "the kernel module for this transport is missing"),
    13: (UnusableError, "iscsid does not let this service in"),
    14: (UnusableError, "the transport cannot do that"),
    15: (BusyError, "there is such a session already"),
    16: (InitiatorError, "iscsid does not understand iscsiadm; restart it after an upgrade"),
    17: (UnusableError, "iSNS is not supported"),
    18: (InitiatorError, "iscsid does not talk to iscsiadm; restart it after an upgrade"),
    19: (RefusedError, "the target refuses the login for good"),
    20: (InitiatorError, "iscsid does not run; start iscsid.socket"),
    21: (MissingError, "there is no such session or node record"),
    22: (TroubleError, "the session cannot be found in /sys"),
    23: (TroubleError, "the SCSI host cannot be found"),
    24: (AuthenticationError, "the target refuses these credentials, or this initiator"),
    25: (TroubleError, "the iSNS query failed"),
    26: (TroubleError, "the iSNS registration failed"),
    27: (UnusableError, "this version of open-iscsi cannot do that"),
    28: (BusyError, "the session is in use"),
    29: (TroubleError, "iscsid asks to try again"),
    30: (InternalError, "iscsiadm was called in a wrong way"),
    31: (InitiatorError, "a process of iscsid died"),
    32: (UnreachableError, "the session is not connected"),
    33: (InitiatorError, "iscsid does not answer"),
}
"""Source: iscsiadm(8), EXIT STATUS; for 33 open-iscsi include/iscsi_err.h."""


class Iscsiadm:
    """The program."""

    def __init__(self, program: str = PROGRAM) -> None:
        """Use it from where it is."""
        self._program = program
        self._database: Path | None = None
        self._asking = asyncio.Lock()

    async def login(self, where: Where, portal: int, seconds: int) -> bool:
        """Log in as the node record says.

        Args:
            where: its record has been written.
            portal: the target portal group tag.
            seconds: that iscsid allows, as in the record.

        Returns:
            Whether this made the session; else it was there.

        Raises:
            AttemptError: there is no session.
        """
        address = Address(where.address, where.port).text
        argv = [
            *(self._program, "-m", "node", "-T", where.iqn, "-p", f"{address},{portal}"),
            *("-I", where.interface, "--login"),
        ]
        result = await _run(argv, seconds + MARGIN)
        if result.returncode == EXISTS:
            return False
        if result.returncode:
            raise failure(result.returncode, result.stderr)
        return True

    async def logout(self, session: int) -> None:
        """End a session; that it is gone already is success.

        Raises:
            AttemptError: it is still there.
        """
        argv = [self._program, "-m", "session", "-r", str(session), "--logout"]
        result = await _run(argv, LOGOUT + MARGIN)
        if result.returncode and result.returncode not in NOT_FOUND:
            raise failure(result.returncode, result.stderr)

    async def database(self) -> Path:
        """Ask where the records are: builds differ.

        Raises:
            AttemptError: there is no iscsiadm, or it does not say.
        """
        async with self._asking:
            return self._database or await self._find_database()

    async def _find_database(self) -> Path:
        result = await _run([self._program, "-d", "8", "-m", "iface"], MARGIN)
        match = _FOLDER.search(f"{result.stdout}\n{result.stderr}")
        if not match:
            raise UnusableError("iscsiadm does not say where its records are; see iscsiadm(8)")
        self._database = Path(match[1])
        return self._database


async def _run(argv: Sequence[str], seconds: float) -> Result:
    """Run it; that it does not end means that iscsid, of another version perhaps, is deaf."""
    try:
        return await run(argv, deadline=seconds)
    except TimedOutError as error:
        raise InitiatorError(f"iscsid does not answer iscsiadm ({error})") from None


def failure(status: int, said: str) -> AttemptError:
    """Give what an exit status means, with what iscsiadm said last."""
    kind, text = ERRORS.get(status, (TroubleError, f"iscsiadm ended with status {status}"))
    clean = "".join(one if one.isprintable() else "\n" for one in said)
    lines = [line.removeprefix("iscsiadm: ") for line in clean.split("\n") if line.strip()]
    return kind(f"{text} (iscsiadm {status}: {lines[-1][:200]})" if lines else text)
