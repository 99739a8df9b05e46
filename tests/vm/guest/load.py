# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work for the service, and for what it has connected, while it is killed."""

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Final

from storaged_conn.bus.connection import CallError
from tests.caller import Caller
from tests.live import DEADLINE
from tests.vm.guest.schemes import Storage

LINE: Final = 16
"""Bytes of what is written at once: the number of the line, and its end."""

PACE: Final = 0.2
"""Seconds between two lines, or two lists: neither disks nor processors are what is tried here."""

UNANSWERED: Final = {
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.TimedOut",
}
"""What the bus says for a service that is gone, and does not come when it is started for a call.
Source: dbus, bus/connection.c, dispatch.c and activation.c."""


def line(number: int) -> bytes:
    return f"{number:0{LINE - 1}}\n".encode()


class Writer:
    """Writes lines, each of which is on the disk before the next.

    Attributes:
        written: how many lines.
        slowest: the seconds that one took at most.
    """

    def __init__(self, path: Path) -> None:
        """Write to a file or a disk that is there: neither is made, whatever becomes of it."""
        self.written, self.slowest = 0, 0.0
        self._path = path

    def run(self, stop: threading.Event) -> None:
        """Write until told to stop.

        The file is open no longer than it takes, so that whoever wants to unmount it can.

        Raises:
            OSError: what must never be.
        """
        while not stop.wait(PACE):
            begun = time.monotonic()
            file = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(file, line(self.written), self.written * LINE)
                os.fsync(file)
            finally:
                os.close(file)
            self.written += 1
            self.slowest = max(self.slowest, time.monotonic() - begun)

    def check(self, content: bytes) -> None:
        """See that all lines are in what was written to."""
        assert content[: self.written * LINE] == b"".join(map(line, range(self.written)))


class Churn:
    """Manages and unmanages one id in turns. What was answered holds; what was not may be either.

    Attributes:
        managed: whether it is.
        answers, silences: how many calls were answered, and how many were not.
    """

    def __init__(self, caller: Caller, cid: str, storage: Storage) -> None:
        self.cid, self.storage = cid, storage
        self.managed = False
        self.answers = self.silences = 0
        self._caller = caller

    async def run(self, stop: asyncio.Event) -> None:
        """Return when told to stop.

        Raises:
            CallError: what was answered did not hold, or the service said no.
        """
        while not stop.is_set():
            await self.toggle()

    async def toggle(self) -> None:
        """Manage it, or unmanage it; where that is not answered, see what came of it."""
        try:
            if self.managed:
                await self._caller.unmanage(self.cid)
            else:
                await self._caller.manage(self.storage.uri, self.cid, **self.storage.options)
        except CallError as error:
            check_silence(error)
            self.silences += 1
            self.managed = self.cid in await managed(self._caller)
        else:
            self.answers += 1
            self.managed = not self.managed


async def managed(caller: Caller) -> set[str]:
    """Give the ids that are managed, asking until it is answered."""
    while True:
        try:
            return set(await caller.managed())
        except CallError as error:
            check_silence(error)


def check_silence(error: CallError) -> None:
    """See that a call was not answered because the service was killed."""
    if error.name not in UNANSWERED or f"within {DEADLINE:g}" in str(error):
        raise error


async def list_all(caller: Caller, stays: dict[str, str], stop: asyncio.Event) -> int:
    """List until told to stop; what stays, by its ids and URIs, is in every answer, and but once.

    Returns:
        How often it was answered.
    """
    answers = 0
    while not stop.is_set():
        await asyncio.sleep(PACE)
        try:
            found = await caller.objects()
        except CallError as error:
            check_silence(error)
            continue
        answers += 1
        ids = [one["ConnectionId"] for one in found if one["Managed"]]
        assert len(ids) == len(set(ids))
        assert stays.keys() <= set(ids)
        again = [one for one in found if one["Uri"] in stays.values() and not one["Managed"]]
        assert not again, found
    return answers
