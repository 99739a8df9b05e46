# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sessions that have failed: iscsid logs in again by itself, and is given the time to do so.

What it does not bring back although the portal answers, it never may: it can be confused, or the
target may be elsewhere by now. Such a session is ended, and so made anew as any that is lost.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from storaged_conn.errors import AttemptError
from storaged_conn.system.sentinel import Address
from storaged_conn.system.servers import Servers, Spawn

logger = logging.getLogger(__name__)

PATIENCE: Final = 60.0
"""Seconds that the portal answers and the session is still failed. Source: kernel-events.md 1:
iscsid is back 1.6 to 2.4 s after the link; each of its attempts takes up to login_timeout, 15 s."""

End = Callable[[], Awaitable[bool]]
"""Ends a session that failed, if it can be; says whether there is still something to wait for."""


class Recovery:
    """The failed sessions."""

    def __init__(self, portals: Servers, spawn: Spawn) -> None:
        """None has failed yet."""
        self._portals = portals
        self._spawn = spawn
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[str] = set()
        self._changes: dict[Address, asyncio.Event] = {}
        portals.listeners.append(self._hear)

    def failed(self, session: str, portal: Address, end: End) -> None:
        """Learn that a session is failed; may be told again and again."""
        if session not in self._tasks:
            # one whose wait is over stays until it works, so that it is waited for once
            self._tasks = {name: task for name, task in self._tasks.items() if not task.done()}
            self._tasks[session] = self._spawn(self._wait(session, portal, end))

    def forget(self, session: str) -> None:
        """Learn that a session works, or is wanted no more."""
        task = self._tasks.pop(session, None)
        if task and session not in self._ending:  # iscsiadm must not be killed: it may have a lock
            task.cancel()

    async def _wait(self, session: str, portal: Address, end: End) -> None:
        await self._be_patient(portal)
        logger.warning("%s: iscsid has not brought it back in %g s", session, PATIENCE)
        while await self._end(session, end) and self._tasks.get(session) is asyncio.current_task():
            await self._be_patient(portal)

    async def _end(self, session: str, end: End) -> bool:
        self._ending.add(session)
        try:
            return await end()
        finally:
            self._ending.discard(session)

    async def _be_patient(self, portal: Address) -> None:
        """Return when a portal has been there for as long as iscsid is given."""
        while True:
            changed = self._changes.setdefault(portal, asyncio.Event())
            changed.clear()
            patience = PATIENCE if await self._answers(portal) else None
            try:
                async with asyncio.timeout(patience):
                    await changed.wait()
            except TimeoutError:
                return

    async def _answers(self, portal: Address) -> bool:
        try:
            async with self._portals.reach(portal, holds=False):
                return True
        except AttemptError:
            return False

    def _hear(self, portal: Address) -> None:
        if changed := self._changes.get(portal):
            changed.set()
