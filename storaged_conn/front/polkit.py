# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks polkit whether a caller may do something. Whatever is not a clear yes is a no.

The subject is the caller's unique name on the bus, as the bus wrote it into the message, and
nothing that a caller could make up or that could change hands, such as a process id
(CVE-2013-4288). The caller must be on the bus before, while and after polkit is asked
(CVE-2021-3560).

Source: polkit, org.freedesktop.PolicyKit1.Authority.xml.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum, auto
from itertools import count
from typing import Final

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus, BusLostError, CallError
from storaged_conn.errors import LimitExceededError
from storaged_conn.front.actions import Action
from storaged_conn.front.callers import Caller, Callers

logger = logging.getLogger(__name__)

NAME: Final = "org.freedesktop.PolicyKit1"
PATH: Final = "/org/freedesktop/PolicyKit1/Authority"
AUTHORITY: Final = "org.freedesktop.PolicyKit1.Authority"

ALLOW_USER_INTERACTION: Final = 1
"""Source: polkit, CheckAuthorizationFlags."""

ANSWER: Final = 20.0
"""Seconds for polkit to answer by itself; its rules have 15 s (polkit(8), polkit.spawn 10 s)."""

PASSWORD: Final = 60.0
"""Seconds for a person to answer; as long as storaged-connctl waits."""

MAX_CHECKS: Final = 4
"""Questions about one user that wait for polkit."""

MAX_CHECKS_IN_ALL: Final = 64
"""Questions that wait for polkit."""


class Verdict(Enum):
    """What polkit says."""

    YES = auto()
    NO = auto()
    CHALLENGE = auto()  # with a password it would be yes
    DISMISSED = auto()  # somebody was asked for it, and has closed the window
    SILENCE = auto()  # it is not there, broken or too slow


class Polkit:
    """The authority on this bus, if there is one."""

    def __init__(self, bus: Bus, callers: Callers) -> None:
        """Ask nothing yet."""
        self._bus = bus
        self._callers = callers
        self._checks: Counter[int] = Counter()
        self._prompts: set[int] = set()
        self._silent = False
        self._serials = count(1)

    def make_room(self, uid: int) -> None:
        """Refuse a user about whom too much is being asked already.

        Raises:
            LimitExceededError: it would be too much.
        """
        if self._checks[uid] >= MAX_CHECKS or self._checks.total() >= MAX_CHECKS_IN_ALL:
            text = f"polkit is being asked about {MAX_CHECKS} calls of yours already; wait for them"
            raise LimitExceededError(text)

    async def check(
        self, caller: Caller, action: Action, details: Mapping[str, str], *, interactive: bool
    ) -> Verdict:
        """Ask whether a caller may do something; it is cancelled when the caller leaves.

        Args:
            caller: who.
            action: what.
            details: what rules and prompts may use; never a secret.
            interactive: a person may be asked for a password, one at a time for each user.

        Raises:
            LimitExceededError: too much is being asked already.
        """
        with self._counted(caller.uid, interactive=interactive):
            async with self._callers.present(caller.sender):
                verdict = await self._ask(caller, action, details, interactive=interactive)
                here = await self._callers.is_here(caller.sender)
        return verdict if here else Verdict.NO

    @contextmanager
    def _counted(self, uid: int, *, interactive: bool) -> Iterator[None]:
        self.make_room(uid)
        if interactive and uid in self._prompts:
            raise LimitExceededError("you are being asked for a password already; answer that")
        prompts = {uid} if interactive else set()
        self._checks[uid] += 1
        self._prompts |= prompts
        try:
            yield
        finally:
            self._prompts -= prompts
            self._checks -= Counter([uid])

    async def _ask(
        self, caller: Caller, action: Action, details: Mapping[str, str], *, interactive: bool
    ) -> Verdict:
        subject = ["system-bus-name", {"name": wire.variant("s", caller.sender)}]
        flags = ALLOW_USER_INTERACTION if interactive else 0
        question = f"storaged-conn-{next(self._serials)}"
        body = [subject, action, dict(details), flags, question]
        where = (NAME, PATH, AUTHORITY, "CheckAuthorization")
        patience = PASSWORD if interactive else ANSWER
        try:
            reply = await self._bus.call(where, "(sa{sv})sa{ss}us", body, timeout=patience)
        except CallError as error:
            if not self._silent:  # once: anybody could fill the journal
                logger.warning("polkit does not answer, so only root is let through: %s", error)
            self._silent = True
            self._cancel(question)
            return Verdict.SILENCE
        except asyncio.CancelledError:
            self._cancel(question)
            raise
        except wire.MalformedError:
            return Verdict.SILENCE
        self._silent = False
        return _read(reply)

    def _cancel(self, question: str) -> None:
        where = (NAME, PATH, AUTHORITY, "CancelCheckAuthorization")
        with suppress(BusLostError):
            self._bus.send_off(where, "s", question)


def _read(reply: list[object]) -> Verdict:
    match reply:
        case [[True, bool(), dict()]]:
            return Verdict.YES
        case [[False, bool(), {"polkit.dismissed": _}]]:
            return Verdict.DISMISSED
        case [[False, True, dict()]]:
            return Verdict.CHALLENGE
        case [[False, False, dict()]]:
            return Verdict.NO
        case _:
            return Verdict.SILENCE
