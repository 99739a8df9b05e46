# SPDX-License-Identifier: LGPL-2.1-or-later
"""All servers that somebody needs: a sentinel for each, shared, and a few places to connect at."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from storaged_conn.errors import AttemptError
from storaged_conn.system.routes import Routes
from storaged_conn.system.sentinel import Address, Sentinel, Timing

AT_ONCE: Final = 8
"""Connections to one server that are being made at the same time. Source: systemd#7207: 15 mounts
at once overload a small server."""

SLICE: Final = 16
"""Servers whose way is looked at in one turn of the loop: 5 ms."""

Spawn = Callable[[Coroutine[object, object, None]], "asyncio.Task[None]"]


@dataclass(slots=True)
class _Server:
    sentinel: Sentinel
    task: asyncio.Task[None]
    users: int = 0
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


class Servers:
    """All servers that somebody needs.

    Attributes:
        listeners: called with a server when it begins to answer, and whenever it does not for
            another reason than before.
    """

    def __init__(self, routes: Routes, timing: Timing, spawn: Spawn) -> None:
        """No server is watched yet."""
        self.listeners: list[Callable[[Address], None]] = []
        self._routes = routes
        self._timing = timing
        self._spawn = spawn
        self._servers: dict[Address, _Server] = {}
        self._unchecked: deque[Sentinel] = deque()
        self._changed = False

    def watch(self, address: Address, *, holds: bool = True) -> None:
        """Keep a sentinel at a server from now on; may be called several times.

        Args:
            address: where.
            holds: it keeps its connection; who came first says so.
        """
        if address not in self._servers:
            sentinel = Sentinel(address, self._routes, self._timing, self._tell, holds=holds)
            self._servers[address] = _Server(sentinel, self._spawn(sentinel.live()))
        self._servers[address].users += 1

    def unwatch(self, address: Address) -> None:
        """Undo one `watch`."""
        server = self._servers.get(address)
        if server is None:
            return  # all were let go
        server.users -= 1
        if not server.users:
            del self._servers[address]
            server.task.cancel()

    def failure(self, address: Address) -> AttemptError | None:
        """Say why a watched server is down; None where it answers, or it is not known yet."""
        server = self._servers.get(address)
        return server.sentinel.error if server else None

    def any_down(self) -> bool:
        """Say whether there is a server that is known not to answer."""
        return any(one.error for one in self._sentinels())

    @asynccontextmanager
    async def reach(self, address: Address, *, holds: bool = True) -> AsyncIterator[str]:
        """Wait for a server's verdict and for one of its AT_ONCE places.

        Args:
            address: where.
            holds: as in `watch`.

        Yields:
            The address at which it answers.

        Raises:
            AttemptError: it does not.
        """
        self.watch(address, holds=holds)
        try:
            server = self._servers[address]
            await server.sentinel.ask()
            async with server.places:
                server.sentinel.check()  # it may have gone while others had their turn
                yield server.sentinel.answers_at
        finally:
            self.unwatch(address)

    def recheck(self) -> None:
        """Look at the ways to all servers again, since the network has changed."""
        self._changed = True
        if not self._unchecked:
            self._recheck_all()

    def neighbour(self, address: str) -> None:
        """Hear that a host on the link answers: it may be a server that is back, or its gateway."""
        for sentinel in self._sentinels():
            sentinel.hear_of(address)

    def retry(self) -> None:
        """Connect to all anew at once, as after a sleep: nobody knows what became of them."""
        for sentinel in self._sentinels():
            sentinel.renew()

    def close(self) -> None:
        """Let all go."""
        for server in self._servers.values():
            server.task.cancel()
        self._servers.clear()
        self._unchecked.clear()

    def _sentinels(self) -> list[Sentinel]:
        return [server.sentinel for server in self._servers.values()]

    def _recheck_all(self) -> None:
        self._changed = False
        # those that answer first: to lose one is what others wait to hear
        self._unchecked = deque(sorted(self._sentinels(), key=lambda one: one.error is not None))
        self._recheck_some()

    def _recheck_some(self) -> None:
        for _ in range(min(SLICE, len(self._unchecked))):
            self._unchecked.popleft().recheck()
        if self._unchecked:
            asyncio.get_running_loop().call_soon(self._recheck_some)
        elif self._changed:  # meanwhile; to begin anew then would never reach the last ones
            self._recheck_all()

    def _tell(self, sentinel: Sentinel) -> None:
        for listener in self.listeners:
            listener(sentinel.address)
