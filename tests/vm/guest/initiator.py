# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host's own side of iSCSI: the kernel's sessions, root's iscsiadm, and what happened when."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.live import DEADLINE
from tests.vm.guest.units import tool

SYSFS: Final = Path("/sys/class")
PLACES: Final = (Path("/etc/iscsi"), Path("/var/lib/iscsi"))
"""Where open-iscsi keeps its files: in Debian 13 its database is in the second."""


class Session(NamedTuple):
    """One session, as the kernel has it."""

    number: int
    iqn: str
    portal: str
    state: str


def sessions() -> list[Session]:
    """Give the kernel's sessions. Source: scsi_transport_iscsi.c, the attributes of its classes."""
    found = []
    for place in (SYSFS / "iscsi_session").glob("session*"):
        number = int(place.name.removeprefix("session"))
        connection = SYSFS / f"iscsi_connection/connection{number}:0"
        with suppress(OSError):  # it comes or goes
            address = (connection / "persistent_address").read_text().strip()
            port = (connection / "persistent_port").read_text().strip()
            iqn = (place / "targetname").read_text().strip()
            state = (place / "state").read_text().strip()
            found.append(Session(number, iqn, f"{address}:{port}", state))
    return sorted(found)


def session(found: dict[str, Any]) -> int:
    """Give the kernel's number for a connection's session, from its properties."""
    return int(found["ConnectionInfo"]["session"])


def logged_in() -> dict[int, str]:
    """Give the numbers and targets of the sessions that are logged in."""
    return {one.number: one.iqn for one in sessions() if one.state == "LOGGED_IN"}


def until_logged_in(count: int) -> None:
    """Return when as many sessions are logged in; no event tells it, so it is polled for."""
    end = time.monotonic() + DEADLINE
    while len(logged_in()) < count:
        assert time.monotonic() < end, sessions()
        time.sleep(0.05)


def until_failed(count: int) -> None:
    """Return when as many sessions are not logged in."""
    end = time.monotonic() + DEADLINE
    while len(sessions()) - len(logged_in()) < count:
        assert time.monotonic() < end, sessions()
        time.sleep(0.05)


def records() -> set[str]:
    """Give the files of iscsiadm's database."""
    parts = [place / part for place in PLACES for part in ("nodes", "send_targets", "static")]
    return {str(file) for part in parts for file in part.rglob("*") if not file.is_dir()}


def iscsiadm(*argv: str) -> str:
    """Run iscsiadm, which must succeed; gives its output."""
    return tool("iscsiadm", *argv)


def node(iqn: str, portal: str) -> tuple[str, ...]:
    """Give what names a node record on iscsiadm's command line."""
    return ("--mode=node", f"--targetname={iqn}", f"--portal={portal}")


@contextmanager
def foreign(iqn: str, portal: str) -> Iterator[int]:
    """Log in as root does without us; gives the session's number, and logs it out."""
    iscsiadm(*node(iqn, portal), "--op=new")
    try:
        iscsiadm(*node(iqn, portal), "--login")
        (number,) = {one.number for one in sessions() if (one.iqn, one.portal) == (iqn, portal)}
        yield number
    finally:
        if (iqn, portal) in [(one.iqn, one.portal) for one in sessions()]:
            iscsiadm(*node(iqn, portal), "--logout")
        iscsiadm(*node(iqn, portal), "--op=delete")


class Trace:
    """The kernel's own times of what happened to its sessions; a context manager.

    From its log, not from ftrace: to switch that on rewrites the kernel's code, in which an
    emulated machine of two processors was seen to hang.

    Source: Documentation/ABI/testing/dev-kmsg; drivers/scsi/scsi_transport_iscsi.c,
    iscsi_conn_error_event() and __iscsi_unblock_session(). The message to iscsid goes out right
    before the first of them, and the state is set right after the second.
    """

    ERROR: Final = "connection{}:0: detected conn error"
    BACK: Final = "session{}: __iscsi_unblock_session: Unblocking session"

    TELL: Final = Path("/sys/module/scsi_transport_iscsi/parameters/debug_session")
    LOG: Final = Path("/dev/kmsg")
    MARK: Final = "storaged-conn-test: now"

    def __init__(self) -> None:
        self._records: list[tuple[float, str]] = []
        self._epoch = 0.0

    def __enter__(self) -> Self:
        self.TELL.write_text("1")
        self._file = os.open(self.LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._file, 0, os.SEEK_END)
        self.LOG.write_text(f"{self.MARK}\n")
        now = time.time()
        self._epoch = now - self._first(self.MARK, 0)  # its clock is one of its own
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note("\n".join(f"{when:.3f} {text}" for when, text in self._records))
        os.close(self._file)
        self.TELL.write_text("0")

    def failed(self, session: int, after: float) -> float:
        """Give when the kernel found a session's connection broken, by the clock of time.time()."""
        return self._first(self.ERROR.format(session), after)

    def back(self, session: int, after: float) -> float:
        """Give when a session became LOGGED_IN again, by the clock of time.time()."""
        return self._first(self.BACK.format(session), after)

    def _first(self, text: str, after: float) -> float:
        self._read()
        for stamp, said in self._records:
            if said.startswith(text) and stamp + self._epoch > after:
                return stamp + self._epoch
        raise AssertionError(f"the kernel did not say {text!r}")

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                head, _, rest = os.read(self._file, 8192).decode(errors="replace").partition(";")
                text = rest.partition("\n")[0].strip()
                self._records.append((int(head.split(",")[2]) / 1e6, text))
