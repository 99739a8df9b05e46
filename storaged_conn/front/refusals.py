# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls that are too many, until their callers are told so.

A flood of calls would be a flood of refusals, and who called little would wait behind it. So they
wait here, and for each call that has its turn one is told.
"""

from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from storaged_conn.bus.connection import Bus, BusLostError
from storaged_conn.bus.wire import Field, Flag, Message
from storaged_conn.errors import LimitExceededError
from storaged_conn.front.callers import Callers
from storaged_conn.front.flight import Flight

MAX_REFUSED: Final = 2**15
"""Calls that wait to be refused; any more are left unanswered. With 400 bytes each, 13 MiB. Source:
dbus-daemon lets a user have 256 connections, and each wait for 128 replies."""


class Refusals:
    """The calls that are to be refused, in the order in which they came."""

    def __init__(self, bus: Bus, callers: Callers, flight: Flight) -> None:
        """Begin with none."""
        self._bus = bus
        self._callers = callers
        self._flight = flight
        self._waiting: deque[tuple[Message, str]] = deque()

    def __bool__(self) -> bool:
        """Say whether somebody is to be told."""
        return bool(self._waiting)

    def add(self, message: Message, text: str) -> None:
        """Refuse a call, later, with LimitExceeded."""
        if len(self._waiting) < MAX_REFUSED and not message.flags & Flag.NO_REPLY_EXPECTED:
            sender: dict[int, Any] = {Field.SENDER: message.text(Field.SENDER)}
            self._waiting.append((replace(message, fields=sender, body=b""), text))

    def tell(self) -> None:
        """Tell the one that has waited longest, unless it would not read it."""
        message, text = self._waiting.popleft()
        caller = self._callers.known(message.text(Field.SENDER))
        if caller and not self._flight.may_hear(caller):
            return
        if caller:
            self._flight.sent(caller, len(text))
        with suppress(BusLostError):  # nobody is left to tell; the daemon is ending
            self._bus.error(message, LimitExceededError(text).dbus_name, text)
