# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells when a server stops answering, and when it answers again."""

from collections.abc import Callable

from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look, Source
from storaged_conn.system.sentinel import Address
from storaged_conn.system.servers import Servers

KIND = "server"
"""Topics of this kind are named HOST:PORT, as in a URI."""

PORTAL = "portal"
"""The same for what must not be connected to for long; see sentinel.py."""


class ServerSource(Source):
    """Keeps a sentinel at every server that a connection needs."""

    def __init__(self, servers: Servers) -> None:
        """Nothing is watched before `start`."""
        self._servers = servers
        self._look: Look | None = None
        self._topics: dict[Address, set[Topic]] = {}

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        """See Source; nothing is ever missed, so `resync` is not needed."""
        self._look = look
        self._servers.listeners.append(self._tell)

    def close(self) -> None:
        """See Source."""
        self._servers.close()

    def watch(self, topic: Topic) -> None:
        """See Source."""
        if topic.kind in {KIND, PORTAL}:
            address = Address.read(topic.name)
            self._topics.setdefault(address, set()).add(topic)
            self._servers.watch(address, holds=topic.kind == KIND)

    def unwatch(self, topic: Topic) -> None:
        """See Source."""
        if topic.kind in {KIND, PORTAL}:
            address = Address.read(topic.name)
            self._topics[address].discard(topic)
            if not self._topics[address]:
                del self._topics[address]
            self._servers.unwatch(address)

    def _tell(self, address: Address) -> None:
        """Have all tried anew: who waits for a server shows the reason that holds now."""
        if self._look:
            for topic in self._topics.get(address, ()):
                self._look(topic, hint=True)
