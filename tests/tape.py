# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real service inside a network of namespaces, and a tape of what it signals, with the times.

    with network() as net:
        async with behind(net, directory) as inside:
            await inside.caller.manage(...)
            at = await inside.tape.says("my cid", began, Connected=False)

The bus is reached through its socket in the file system, so the client need not be inside.
"""

import asyncio
import sys
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus
from storaged_conn.bus.wire import Field, Message
from storaged_conn.front.turns import MAX_WAITING
from storaged_conn.names import object_path
from tests.caller import CHANGED, Caller, calling
from tests.live import DEADLINE, Daemon, private_bus
from tests.netns import Network


class Entry(NamedTuple):
    """One PropertiesChanged: monotonic seconds, whose, and what it says."""

    at: float
    path: str
    changes: dict[str, Any]


class Tape:
    """What PropertiesChanged says.

    Attributes:
        entries: all of it.
    """

    def __init__(self, bus: Bus) -> None:
        self.entries: list[Entry] = []
        self._news = asyncio.Event()
        bus.listen(self._hear)

    async def says(self, cid: str, after: float, **wanted: object) -> float:
        """Return the time at which this was said first, after another time."""
        path = object_path(cid)
        async with asyncio.timeout(DEADLINE):
            while True:
                self._news.clear()
                for one in self.entries:
                    if (
                        one.at >= after
                        and one.path == path
                        and wanted.items() <= one.changes.items()
                    ):
                        return one.at
                await self._news.wait()

    def states(self, cid: str, after: float = 0) -> list[str]:
        """Give the states that were told after a time, in their order."""
        told = [one for one in self.entries if one.path == object_path(cid) and one.at >= after]
        return [str(one.changes["State"]) for one in told if "State" in one.changes]

    def _hear(self, message: Message) -> None:
        if message.text(Field.MEMBER) == CHANGED:
            at = asyncio.get_running_loop().time()
            changes: Any = wire.plain(message.arguments()[1])
            self.entries.append(Entry(at, message.text(Field.PATH), changes))
            self._news.set()


class Inside(NamedTuple):
    """The service in the client's namespace, and a client of its bus outside."""

    address: str
    daemon: Daemon
    caller: Caller
    tape: Tape


@asynccontextmanager
async def behind(
    net: Network,
    directory: Path,
    *args: str,
    configuration: str = "",
    prefix: Sequence[str] = (),
) -> AsyncIterator[Inside]:
    """Run the service in the client's namespace.

    Args:
        directory: for the service's own directories.
        args: more of its command line.
        configuration: the whole of its configuration file.
        prefix: what executes the rest of the command line, inside.
    """
    config = directory / "config/etc/storaged-conn/storaged-conn.conf"
    config.parent.mkdir(parents=True)
    config.write_text(configuration)
    args = ("--enable-simulated", "--config-root", str(directory / "config"), *args)
    entered = (*net.client.prefix, *prefix)
    with private_bus() as address:
        async with (
            calling(address) as caller,
            Daemon(
                address, directory / "state", directory / "run", *args, prefix=entered
            ) as daemon,
        ):
            try:
                yield Inside(address, daemon, caller, Tape(caller.bus))
            finally:
                sys.stderr.write(daemon.log)  # pytest shows it if the test has failed


async def manage_all(caller: Caller, uris: Mapping[str, str], **options: object) -> None:
    """Manage each URI under its id, as many at a time as one caller may."""
    left = iter(uris.items())

    async def work() -> None:
        for cid, uri in left:
            await caller.manage(uri, cid, **options)

    await asyncio.gather(*(work() for _ in range(MAX_WAITING // 2)))


async def all_connected(caller: Caller, cids: Iterable[str]) -> None:
    """Return when all are connected."""
    left = iter(cids)

    async def work() -> None:
        for cid in left:
            assert await caller.wait_for(cid, "connected") == "connected"

    await asyncio.gather(*(work() for _ in range(MAX_WAITING // 2)))


def most_at_once(ends: Iterable[float], duration: float) -> int:
    """Say how many things of a known duration were done at the same time, from when they ended.

    All that ended within one duration were; half of it leaves room for a clock read late.
    """
    times = sorted(ends)
    return max(bisect_left(times, end + duration / 2) - at for at, end in enumerate(times))
