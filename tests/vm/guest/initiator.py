# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host's own side of iSCSI: the kernel's sessions, root's iscsiadm, and what happened when."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.live import DEADLINE
from tests.vm.guest.units import tool

SYSFS: Final = Path("/sys/class")
CONFIG: Final = Path("/etc/iscsi")


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
    places = (CONFIG / "nodes", CONFIG / "send_targets", CONFIG / "static")
    return {str(file) for place in places for file in place.rglob("*") if not file.is_dir()}


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

    Source: Documentation/trace/ftrace.rst, "Instances"; include/trace/events/iscsi.h; and the texts
    from drivers/scsi/scsi_transport_iscsi.c, iscsi_conn_error_event() and
    __iscsi_unblock_session(). The message to iscsid goes out right before the first of them, and
    the state is set right after the second.
    """

    ERROR: Final = "connection{}:0: detected conn error"
    BACK: Final = "session{}: __iscsi_unblock_session Unblocking session"

    def __init__(self) -> None:
        self._place = Path("/sys/kernel/tracing/instances/iscsi")
        self._epoch = time.time() - time.monotonic()

    def __enter__(self) -> Self:
        self._place.mkdir()
        (self._place / "trace_clock").write_text("mono")
        for event in ("printk/console", "iscsi/iscsi_dbg_trans_session"):
            (self._place / "events" / event / "enable").write_text("1")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note((self._place / "trace").read_text())
        self._place.rmdir()

    def failed(self, session: int, after: float) -> float:
        """Give when the kernel found a session's connection broken, by the clock of time.time()."""
        return self._first(self.ERROR.format(session), after)

    def back(self, session: int, after: float) -> float:
        """Give when a session became LOGGED_IN again, by the clock of time.time()."""
        return self._first(self.BACK.format(session), after)

    def _first(self, text: str, after: float) -> float:
        for line in (self._place / "trace").read_text().splitlines():
            found = re.search(r" (\d+\.\d+): \w+: (?:\[[ \d.]+\] )?\s*(.*)", line)
            if found and found[2].startswith(text):
                when = float(found[1]) + self._epoch
                if when > after:
                    return when
        raise AssertionError(f"the kernel did not say {text!r}")
