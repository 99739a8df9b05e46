# SPDX-License-Identifier: LGPL-2.1-or-later
"""Callers that wait for a state."""

import asyncio

from storaged_conn.errors import NotFoundError, TimedOutError
from storaged_conn.front.callers import Callers
from storaged_conn.manager import Manager


class Waits:
    """Wakes those who wait, from what the manager tells; a Listener of the manager."""

    def __init__(self, manager: Manager, callers: Callers) -> None:
        """Look states up in the manager."""
        self._manager = manager
        self._callers = callers
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def added(self, cid: str) -> None:
        """See unmanaged.Listener."""
        self.changed(cid)

    def changed(self, cid: str) -> None:
        """See unmanaged.Listener."""
        for event in self._waiting.get(cid, ()):
            event.set()

    def removed(self, cid: str) -> None:
        """See unmanaged.Listener."""
        self.changed(cid)

    async def wait(self, cid: str, state: str, seconds: float, sender: str) -> None:
        """Return when a connection is in a state.

        Raises:
            NotFoundError: it is gone.
            TimedOutError: it did not get there in time; the message says where it is.
        """
        if self._state(cid) == state:
            return
        event = asyncio.Event()
        self._waiting.setdefault(cid, set()).add(event)
        try:
            async with asyncio.timeout(seconds), self._callers.present(sender):
                while self._state(cid) != state:
                    event.clear()
                    await event.wait()
        except TimeoutError:
            now = self._state(cid)
            text = f"not {state} within {seconds:g} s but {now}; it is still being worked on"
            raise TimedOutError(text) from None
        finally:
            self._waiting[cid].discard(event)
            if not self._waiting[cid]:
                del self._waiting[cid]

    def _state(self, cid: str) -> str:
        view = self._manager.view(cid)
        if view is None:
            raise NotFoundError(f"connection_id {cid!r} is not known (any more); see List")
        return view.runner.state if view.runner else "connected"
