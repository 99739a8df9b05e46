# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a secret could show on a machine, for a test that knows what it looks like."""

import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Final

from storaged_conn.bus.wire import Field, Kind
from tests.caller import MAX_MESSAGE
from tests.canary import Tap, processes
from tests.live import DEADLINE
from tests.vm.guest.units import SYSTEM_BUS, tool

Marks = Callable[[bytes], bool]
"""Says whether there is a secret in something."""

RECORDS: Final = "/var/lib/storaged-conn/connections.db"

TELLING: Final = {"Manage", "Validate", "Discover"}
"""The calls in which a caller sends a secret."""


class Sampler(threading.Thread):
    """Looks at how all processes were started, again and again.

    Attributes:
        found: where a secret was.
        tools: how often the tool was seen that is given the secret.
        rounds: how often all were looked at.
    """

    def __init__(self, marks: Marks, tool: bytes) -> None:
        super().__init__(daemon=True)
        self.found: set[str] = set()
        self.tools = self.rounds = 0
        self._marks, self._tool = marks, tool
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.rounds += 1
            for place, content in processes():
                self.tools += self._tool in content
                if self._marks(content):
                    self.found.add(f"{place}: {content.split(bytes(1))[0].decode()}")

    def end(self) -> None:
        self._done.set()
        self.join(DEADLINE)


@contextmanager
def sampling(marks: Marks, tool: bytes) -> Iterator[Sampler]:
    sampler = Sampler(marks, tool)
    sampler.start()
    yield sampler
    sampler.end()
    assert not sampler.found


@asynccontextmanager
async def searching(marks: Marks) -> AsyncIterator[None]:
    """See that no secret is on the bus meanwhile, but in calls, nor in the journal afterwards."""
    began = time.time()
    tap = await Tap.open(SYSTEM_BUS, max_message=MAX_MESSAGE)
    assert isinstance(tap, Tap)
    with closing(tap):
        await tap.monitor()
        yield
        found = [one for one, raw in tap.seen if marks(raw)]
    assert {one.text(Field.MEMBER) for one in found} <= TELLING
    assert {one.kind for one in found} <= {Kind.CALL}
    assert not marks(journal(began))
    assert not files(marks, began)


def journal(began: float) -> bytes:
    argv = ("journalctl", f"--since=@{int(began)}", "--output=export", "--all")
    return subprocess.run(argv, capture_output=True, timeout=DEADLINE, check=True).stdout


def files(marks: Marks, began: float) -> set[str]:
    """Give the files with a secret, of all those that were changed since then and that are kept.

    A name of a network namespace is a regular file to find(1), and cannot be read.
    """
    places = ("/", "/run", "/tmp", "/dev/shm", "-xdev", "-ignore_readdir_race")
    argv = ("find", *places, "-type", "f", "-not", "-fstype", "nsfs", "-newerct")
    changed = tool(*argv, f"@{int(began)}").splitlines()
    return {one for one in changed if marks(read(one))}


def read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        return b""
