# SPDX-License-Identifier: LGPL-2.1-or-later
"""One call: who calls what, what answers it, and how it can fail to fit."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from storaged_conn.front.actions import Action
from storaged_conn.front.callers import Caller

ERROR: Final = "org.freedesktop.DBus.Error."


class ProtocolError(Exception):
    """A call that does not fit any object; `name` is one of the bus's own errors."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = ERROR + name


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler gets before the arguments.

    Attributes:
        caller: who calls.
        path: of which object.
        interactive: the caller may be asked for a password.
        action: what polkit has allowed; None where it was not asked.
    """

    caller: Caller
    path: str
    interactive: bool = False
    action: Action | None = None


Reply = bytes | tuple[object, ...]
"""A handler gives the values, or the whole body as bytes."""

Handler = Callable[..., Reply | Awaitable[Reply]]
