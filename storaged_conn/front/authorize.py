# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may call what: one table, and one place through which every call goes.

A method that is not in the table cannot be called, whatever the XML says.
"""

import os
from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from storaged_conn.errors import NotAuthorizedError
from storaged_conn.front.callers import Callers
from storaged_conn.front.contract import Method
from storaged_conn.names import (
    CONNECTION,
    INTROSPECTABLE,
    MANAGER,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
)


class Access(Enum):
    """What a method needs."""

    READ = auto()
    WRITE = auto()


ACCESS: Final[Mapping[tuple[str, str], Access]] = {
    (MANAGER, "Manage"): Access.WRITE,
    (MANAGER, "Unmanage"): Access.WRITE,
    (MANAGER, "List"): Access.READ,
    (MANAGER, "Validate"): Access.WRITE,  # they make root look at paths and servers
    (MANAGER, "Discover"): Access.WRITE,
    (MANAGER, "GetConnection"): Access.READ,
    (CONNECTION, "Reconnect"): Access.WRITE,
    (CONNECTION, "WaitFor"): Access.READ,
    (OBJECT_MANAGER, "GetManagedObjects"): Access.READ,
    (PROPERTIES, "Get"): Access.READ,
    (PROPERTIES, "GetAll"): Access.READ,
    (PROPERTIES, "Set"): Access.READ,  # always answered PropertyReadOnly
    (INTROSPECTABLE, "Introspect"): Access.READ,
    (PEER, "Ping"): Access.READ,
    (PEER, "GetMachineId"): Access.READ,
}


class Authority:
    """Decides by uid: root and the service's own user may write, everybody may read."""

    def __init__(self, callers: Callers) -> None:
        """Ask for uids there."""
        self._callers = callers
        self._writers = {0, os.geteuid()}

    def is_open(self, method: Method) -> bool:
        """Say whether everybody may call this, without asking who it is.

        Raises:
            NotAuthorizedError: nobody may.
        """
        access = ACCESS.get((method.interface, method.name))
        if access is None:
            raise NotAuthorizedError(f"{method.name} has no declared access; nobody may call it")
        return access is Access.READ

    async def check(self, method: Method, sender: str) -> int:
        """Let a caller pass, and say which uid it has.

        Raises:
            NotAuthorizedError: it may not, or it is not known who it is.
        """
        uid = await self._callers.uid(sender)
        if uid is None or uid not in self._writers:
            raise NotAuthorizedError(f"{method.name} is for root; call it as root, such as by sudo")
        return uid
