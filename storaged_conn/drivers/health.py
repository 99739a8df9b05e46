# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether storage on a server works: mounted is not connected.

The server's sentinel says at once that it is down; that it works is believed to nothing but an
answer on the mount itself. What only the mount says, such as that it is stale or that the server's
port answers and the storage does not, brings no event when it ends: so it is asked again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from storaged_conn.core.backoff import wait_seconds
from storaged_conn.core.model import Topic
from storaged_conn.errors import AttemptError, UnreachableError
from storaged_conn.system.mountinfo import Mount
from storaged_conn.system.probe import Probes, Spawn, Verdict
from storaged_conn.system.sentinel import Address
from storaged_conn.system.servers import Servers

SETTLING: Final = 30.0
"""Seconds after a server's return in which its refusals may pass: nfsd answers before mountd does,
and before everything is exported. Source: nfs-utils, systemd/nfs-server.service and
nfs-mountd.service; mount.nfs itself asks three times before it believes a refusal
(utils/mount/stropts.c, nfs_is_permanent_error)."""


class Health:
    """Knows the servers, and asks the mounts.

    Attributes:
        news: is called with a topic that should be looked at again.
    """

    def __init__(self, servers: Servers, spawn: Spawn) -> None:
        """Listen to what the sentinels say."""
        self.news: Callable[[Topic], None] = lambda topic: None
        self._servers = servers
        self._spawn = spawn
        self._probes = Probes(spawn)
        self._scopes: dict[Address, set[asyncio.Timeout]] = {}
        self._down: set[Address] = set()
        self._returned: dict[Address, float] = {}
        self._tries: dict[Topic, int] = {}
        self._due: set[Topic] = set()
        servers.listeners.append(self._hear)

    def is_down(self, server: Address) -> bool:
        """Say whether a server is known not to answer."""
        return self._servers.failure(server) is not None

    def is_settling(self, server: Address) -> bool:
        """Say whether a server has been down, and is back for less than SETTLING."""
        since = self._returned.get(server)
        return since is not None and asyncio.get_running_loop().time() < since + SETTLING

    @asynccontextmanager
    async def reach(self, server: Address) -> AsyncIterator[str]:
        """Wait for a server and for its turn; what is done then ends when the server goes down.

        Yields:
            The address at which it answers.

        Raises:
            AttemptError: it does not, or not any more.
        """
        async with self._servers.reach(server) as address, self.while_up(server):
            yield address

    @asynccontextmanager
    async def while_up(self, server: Address) -> AsyncIterator[None]:
        """Cancel what is done inside when a server goes down.

        Raises:
            UnreachableError: it has been.
        """
        scope = asyncio.timeout(None)
        scopes = self._scopes.setdefault(server, set())
        scopes.add(scope)
        try:
            async with scope:
                yield
        except TimeoutError:
            raise UnreachableError(f"{server.text} has gone down meanwhile; see server") from None
        finally:
            scopes.discard(scope)

    async def ask(self, mount: Mount, server: Address, topic: Topic) -> Verdict | None:
        """Find out whether a mount answers, and have it looked at again where it does not.

        Args:
            mount: which.
            server: it comes from.
            topic: what `news` is told then.

        Returns:
            None where it cannot be known.
        """
        try:
            async with self.reach(server):
                verdict = await self._probes.ask(mount)
        except AttemptError:
            self._tries.pop(topic, None)  # its sentinel will tell
            return Verdict.SILENT
        if verdict is Verdict.ANSWERS:
            self._tries.pop(topic, None)
        elif topic not in self._due:
            self._due.add(topic)
            self._spawn(self._ask_again(topic))
        return verdict

    def forget(self, topic: Topic) -> None:
        """Learn that nobody wants to know about it any more."""
        self._tries.pop(topic, None)

    async def _ask_again(self, topic: Topic) -> None:
        tries = self._tries[topic] = self._tries.get(topic, 0) + 1
        await asyncio.sleep(wait_seconds(tries, 0.0))
        self._due.discard(topic)
        self.news(topic)

    def _hear(self, server: Address) -> None:
        if self.is_down(server):
            self._down.add(server)
            for scope in self._scopes.pop(server, ()):
                scope.reschedule(asyncio.get_running_loop().time())
        elif server in self._down:
            self._down.discard(server)
            now = asyncio.get_running_loop().time()
            recent = {one: at for one, at in self._returned.items() if at + SETTLING > now}
            self._returned = {**recent, server: now}
