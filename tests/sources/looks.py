# SPDX-License-Identifier: LGPL-2.1-or-later
"""Remembers what a source says, and lets a test wait for it."""

import asyncio
from collections.abc import Callable

from storaged_conn.core.model import Topic


class Looks:
    """A Look that remembers.

    Attributes:
        heard: every topic, with its hint, in order.
        resyncs: how often everything was to be looked at.
    """

    def __init__(self) -> None:
        self.heard: list[tuple[Topic, bool]] = []
        self.resyncs = 0
        self._news = asyncio.Event()

    def __call__(self, topic: Topic, *, hint: bool) -> None:
        self.heard.append((topic, hint))
        self._news.set()

    def resync(self) -> None:
        self.resyncs += 1
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when a condition holds, asking again whenever something was said."""
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def of(self, kind: str, name: object) -> bool:
        """Wait for a topic, forget what was said until then, and give its hint."""
        topic = Topic(kind, str(name))
        await self.until(lambda: topic in dict(self.heard))
        hint = dict(self.heard)[topic]
        self.heard.clear()
        return hint
