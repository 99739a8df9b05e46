# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every source is: it turns one stream of the operating system into "look again at this"."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from storaged_conn.core.model import Topic


class Look(Protocol):
    """Where news goes. An event is a reason to look, never a state."""

    def __call__(self, topic: Topic, *, hint: bool) -> None:
        """Have the connections that a topic concerns looked at again.

        Args:
            topic: what there is news about.
            hint: it may make an attempt succeed, so those that wait try at once. Never set for
                what our own attempts cause, or a failing attempt would start the next.
        """


class Source(ABC):
    """Watches one stream of the operating system from the event loop, without a thread."""

    @abstractmethod
    def start(self, look: Look, resync: Callable[[], None]) -> None:
        """Begin to watch; `resync` says that everything must be looked at again."""

    @abstractmethod
    def close(self) -> None:
        """Stop watching."""

    @abstractmethod
    def watch(self, topic: Topic) -> None:
        """Learn that somebody cares for a topic; told once for each, whatever its kind."""

    @abstractmethod
    def unwatch(self, topic: Topic) -> None:
        """Learn that nobody cares for a topic any more."""
