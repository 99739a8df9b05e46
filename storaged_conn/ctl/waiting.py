# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wait, by signals alone, for what becomes of a connection that was just managed."""

import asyncio
from contextlib import suppress
from typing import Final

from storaged_conn.bus.connection import CallError
from storaged_conn.ctl.client import Client, Failure, Properties
from storaged_conn.ctl.watch import Changed, Owner, Removed, Signals
from storaged_conn.errors import ERROR_PREFIX, NotFoundError, TimedOutError

SETTLED: Final = frozenset({"connected", "failed"})
"""The states after which waiting longer tells nothing new."""


class Newcomer:
    """A connection that was just managed; the service may go and come back meanwhile."""

    def __init__(self, client: Client, signals: Signals, path: str) -> None:
        """Prepare to wait.

        Args:
            client: the service.
            signals: followed since before the connection was managed.
            path: the connection's object.
        """
        self._client = client
        self._signals = signals
        self._path = path
        self._properties: Properties | None = None

    async def settle(self, seconds: float) -> Properties:
        """Wait until it is connected or has failed, or time is up; gives its properties then.

        Raises:
            Failure: somebody unmanaged it, or the service is gone.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._read()
                while self._properties is None or self._properties.get("State") not in SETTLED:
                    await self._step()
        if self._properties is None:
            text = f"the service has gone, and was not back within {seconds:g} s; see its journal"
            raise Failure(text, ERROR_PREFIX + TimedOutError.name)
        return self._properties

    async def _step(self) -> None:
        match await self._signals.next():
            case Owner(""):
                self._properties = None
            case Owner():
                await self._read()
            case Changed(path, properties) if path == self._path and self._properties is not None:
                self._properties = self._properties | properties
            case Removed(path) if path == self._path:
                text = "the connection was unmanaged meanwhile, by somebody else"
                raise Failure(text, ERROR_PREFIX + NotFoundError.name)

    async def _read(self) -> None:
        owner = self._signals.owner
        try:
            self._properties = await self._client.properties(self._path)
        except CallError:
            if owner and owner == self._signals.owner:
                raise
            # The service is gone; its records stay, so wait for its return.
