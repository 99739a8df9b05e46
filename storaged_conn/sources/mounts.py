# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells what is mounted and unmounted, by anybody, within a millisecond and without polling.

The kernel makes /proc/self/mountinfo readable as "exceptional" when the table changes (proc(5)).
asyncio has no word for that: with `add_reader` the file would be readable for ever, and the loop
would spin. So an epoll of ours waits for EPOLLPRI on the file, and the loop waits for that epoll.
"""

import asyncio
import os
import select
from collections.abc import Callable, Sequence
from typing import Final

from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look, Source
from storaged_conn.system.mountinfo import Mount, MountTable

PAUSE: Final = 0.02
"""Seconds from one reading to the next at least, but none before the first.
Source: kernel-events.md, 2.4: a burst of 2636 operations made 2411 events, and a reading of 1000
mounts takes 3 ms."""

RESTING: Final = 4
"""How many times as long as it took to read the table to rest afterwards: 10 000 mounts take 80 ms,
and a burst of theirs must not fill the loop. Source: kernel-events.md, 2.4."""

ANY: Final = Topic("mounts", "")
"""The topic of every change of the table."""


class MountSource(Source):
    """Keeps a table up to date, and turns its changes into looks."""

    def __init__(self, table: MountTable) -> None:
        """Nothing is watched before `start`."""
        self._table = table
        self._look: Look | None = None
        self._file = -1
        self._epoll: select.epoll | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._again = False

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        """See Source; events are never lost here, so `resync` is not needed."""
        self._file = os.open(self._table.path, os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._file, select.EPOLLPRI)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._changed)
        self._table.refresh()  # after the file is watched, so that nothing comes in between
        self._look = look
        self._table.listeners.append(self._tell)

    def close(self) -> None:
        """See Source."""
        if self._epoll is None:
            return
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()
        os.close(self._file)
        self._table.listeners.remove(self._tell)
        self._epoll = None
        if self._timer:
            self._timer.cancel()

    def watch(self, topic: Topic) -> None:
        """See Source; the whole table is watched anyway."""

    def unwatch(self, topic: Topic) -> None:
        """See Source."""

    def _changed(self) -> None:
        assert self._epoll is not None
        self._epoll.poll(0)  # to be called is the event; this takes what is left of it
        if self._timer:
            self._again = True
        else:
            self._read()

    def _read(self) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._table.refresh()
        rest = max(PAUSE, RESTING * (loop.time() - begun))
        self._timer = loop.call_later(rest, self._rested)

    def _rested(self) -> None:
        self._timer = None
        if self._again:
            self._again = False
            self._read()

    def _tell(self, added: Sequence[Mount], removed: Sequence[Mount]) -> None:
        """Say what to look at. Only what went is a hint: it may have made a place free."""
        assert self._look is not None
        for mounts, hint in ((removed, True), (added, False)):
            for mount in mounts:
                self._look(Topic("mount", mount.target), hint=hint)
                for name in mount.names:
                    self._look(Topic("source", name), hint=hint)
        self._look(ANY, hint=False)
