# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose call is next: users in turn, and the callers of one user in turn.

So who calls much waits for itself: neither many calls on one connection to the bus nor many
connections of one user get more than that user's share.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from storaged_conn.bus.wire import Message
from storaged_conn.errors import LimitExceededError
from storaged_conn.front.callers import Caller

MAX_WAITING: Final = 64
"""Calls of one caller that wait for their turn. Source: half of dbus-daemon's limit of 128 replies
that a connection may wait for, so a caller meets our words before the bus's."""

MAX_HELD: Final = 128
"""Calls of one caller that wait while it does not read. The bus lets no more wait for replies, so
nothing is said to it meanwhile that it would not read either."""

MAX_RUNNING: Final = 64
"""Calls of one caller that are being answered."""

MAX_OF_USER: Final = 256
"""Calls of one user that wait or are being answered, all its callers together; root has as many as
its callers may have. With 32 KiB each, 8 MiB."""

MAX_IN_ALL: Final = 1024
"""Calls of all users but root."""


@dataclass(slots=True)
class _Queue:
    waiting: deque[Message] = field(default_factory=deque)
    running: int = 0
    lined_up: bool = False  # in the line of its user


class Turns:
    """The calls that wait, and how many are being answered."""

    def __init__(self, may_have: Callable[[Caller], bool]) -> None:
        """Begin with none.

        Args:
            may_have: says whether a caller may have another reply now; see `resume`.
        """
        self._may_have = may_have
        self._queues: dict[Caller, _Queue] = {}
        self._lines: dict[int, deque[Caller]] = {}  # by user, in the order of their turns
        self._held: list[Caller] = []
        self._pending: Counter[int] = Counter()

    def __bool__(self) -> bool:
        """Say whether somebody has a turn."""
        return bool(self._lines)

    def add(self, caller: Caller, message: Message) -> None:
        """Line a call up.

        Raises:
            LimitExceededError: too many of the caller, or of its user, are there already.
        """
        self._check_room(caller)
        queue = self._queues.setdefault(caller, _Queue())
        queue.waiting.append(message)
        self._pending[caller.uid] += 1
        self._line_up(caller, queue)

    def take(self) -> tuple[Caller, Message] | None:
        """Give the next call, which is being answered from now on; None if nobody has a turn."""
        while self._lines:
            uid, line = next(iter(self._lines.items()))
            caller = line.popleft()
            del self._lines[uid]  # to the end of all lines, or away
            if line:
                self._lines[uid] = line
            if self._may_have(caller):
                return caller, self._begin(caller)
            self._held.append(caller)
        return None

    def done(self, caller: Caller) -> None:
        """Hear that a call has been answered."""
        queue = self._queues[caller]
        queue.running -= 1
        self._pending -= Counter([caller.uid])
        self._line_up(caller, queue)
        if not queue.running and not queue.waiting:
            del self._queues[caller]

    def resume(self) -> None:
        """Ask again about those who could not have another reply."""
        held, self._held = self._held, []
        for caller in held:
            self._queues[caller].lined_up = False
            self._line_up(caller, self._queues[caller])

    def _check_room(self, caller: Caller) -> None:
        queue = self._queues.get(caller)
        waiting = len(queue.waiting) if queue else 0
        if waiting >= MAX_HELD or (waiting >= MAX_WAITING and self._may_have(caller)):
            text = f"{MAX_WAITING} calls of yours are waiting; wait for their replies"
            raise LimitExceededError(text)
        if caller.trusted:
            return
        others = sum(number for uid, number in self._pending.items() if uid)
        if self._pending[caller.uid] >= MAX_OF_USER or others >= MAX_IN_ALL:
            text = f"{MAX_OF_USER} calls of your user are waiting; wait for their replies"
            raise LimitExceededError(text)

    def _line_up(self, caller: Caller, queue: _Queue) -> None:
        if queue.waiting and queue.running < MAX_RUNNING and not queue.lined_up:
            queue.lined_up = True
            self._lines.setdefault(caller.uid, deque()).append(caller)

    def _begin(self, caller: Caller) -> Message:
        queue = self._queues[caller]
        queue.lined_up = False
        queue.running += 1
        message = queue.waiting.popleft()
        self._line_up(caller, queue)
        return message
