# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sentinel at work, and what it says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from storaged_conn.config import Keepalive
from storaged_conn.errors import AttemptError
from storaged_conn.system.routes import Routes
from storaged_conn.system.sentinel import Address, Sentinel
from tests.system.ports import DEADLINE, FakeRoutes, News, open_files, soon

EARLY: Final = 0.05
"""Seconds by which a clock may disagree with a loop's timers."""


class Watch(News):
    """A sentinel at work.

    Attributes:
        verdicts: the type of each error, or None, in order.
    """

    def __init__(
        self, address: Address, routes: Routes | None = None, timing: Keepalive | None = None
    ) -> None:
        super().__init__()
        self.routes = FakeRoutes()
        self.verdicts: list[type[AttemptError] | None] = []
        self.sentinel = Sentinel(
            address, routes or self.routes, timing or Keepalive(), self._changed
        )
        self._task = asyncio.create_task(self.sentinel.live())
        self._task.add_done_callback(lambda _: self.tell())

    async def says(self, *verdicts: type[AttemptError] | None) -> None:
        """Wait until there are as many verdicts, which must be these."""
        await self.until(lambda: self._task.done() or len(self.verdicts) >= len(verdicts))
        assert self.verdicts == list(verdicts)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task], timeout=DEADLINE)
        assert self._task.cancelled()

    def pause(self) -> float:
        """Give the seconds until the next attempt."""
        assert self.sentinel._wait is not None
        until = self.sentinel._wait.when()
        assert until is not None
        return until - now()

    async def pause_ends(self) -> None:
        gone = self.sentinel._wait
        await soon(lambda: self.sentinel._wait is not gone)

    def _changed(self, sentinel: Sentinel) -> None:
        assert sentinel is self.sentinel
        self.verdicts.append(type(sentinel.error) if sentinel.error else None)
        self.tell()


@asynccontextmanager
async def watching(
    address: Address, routes: Routes | None = None, timing: Keepalive | None = None
) -> AsyncIterator[Watch]:
    before = open_files()
    watch = Watch(address, routes, timing)
    try:
        yield watch
    finally:
        await watch.close()
    await soon(lambda: open_files() <= before)


def now() -> float:
    return asyncio.get_running_loop().time()
