# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our service on a bus of its own, and a client in Python for it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from storaged_conn.bus.connection import Bus
from storaged_conn.names import MANAGER, ROOT, SERVICE
from tests.live import DEADLINE, Address, Daemon, private_bus

AT_ONCE: Final = 32
"""Calls in flight: half of what the service takes from one caller."""

Listing = Mapping[str, Mapping[str, Any]]
"""What List returns: connection id to names to Variants."""

MAX_REPLY: Final = 2**27
"""Bytes. Source: D-Bus specification, the largest message."""


PrivateBus = Callable[[], AbstractContextManager[Address]]


@dataclass(frozen=True)
class Stage:
    """A private bus with our service on it.

    Attributes:
        directory: for whatever is needed; the service's own directories are below it.
    """

    directory: Path
    address: str
    daemon: Daemon
    ours: "Client"


@asynccontextmanager
async def stage(*args: str, bus: PrivateBus = private_bus) -> AsyncIterator[Stage]:
    """Start our service with these arguments on a bus of its own, and connect to it."""
    with tempfile.TemporaryDirectory(prefix="storaged-bench-") as name, bus() as address:
        directory = Path(name)
        state, runtime = directory / "state", directory / "run"
        async with Daemon(address, state, runtime, "--log-level", "warning", *args) as daemon:
            ours = await Bus.open(address, max_message=MAX_REPLY)
            try:
                yield Stage(directory, address, daemon, Client(ours))
            finally:
                ours.close()


class Client:
    """The methods of the manager that benchmarks need."""

    def __init__(self, bus: Bus) -> None:
        """Use a connection."""
        self.bus = bus

    async def manage(self, uri: str, cid: str, options: Mapping[str, Any] | None = None) -> str:
        """Call Manage; returns the object path."""
        (path,) = await self._call("Manage", "ssa{sv}", uri, cid, dict(options or {}))
        return str(path)

    async def unmanage(self, cid: str) -> None:
        """Call Unmanage."""
        await self._call("Unmanage", "sa{sv}", cid, {})

    async def listed(self, name: str = SERVICE) -> Listing:
        """Call List, of our service or another one."""
        (listed,) = await self.bus.call((name, ROOT, MANAGER, "List"), timeout=DEADLINE)
        return cast("Listing", listed)

    async def fill(self, numbers: Iterable[int]) -> None:
        """Manage simulated connections, c00000 and on, AT_ONCE at a time."""
        left = iter(numbers)

        async def work() -> None:
            for number in left:
                await self.manage(f"simulated:c{number:05}", f"c{number:05}")

        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(work())

    async def _call(self, member: str, signature: str, *body: object) -> list[object]:
        where = (SERVICE, ROOT, MANAGER, member)
        return await self.bus.call(where, signature, body, timeout=DEADLINE)
