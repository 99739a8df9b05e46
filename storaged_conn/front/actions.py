# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which action of polkit each method needs: one table.

A method that is not in the table cannot be called, whatever the XML says.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from storaged_conn.names import (
    CONNECTION,
    INTROSPECTABLE,
    MANAGER,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
)


class Action(StrEnum):
    """The actions of polkit/org.storage.connection.policy."""

    MANAGE = "org.storage.connection.manage"
    UNMANAGE = "org.storage.connection.unmanage"
    UNMANAGE_ANY = "org.storage.connection.unmanage-any"
    CONTROL = "org.storage.connection.control"
    DISCOVER = "org.storage.connection.discover"


ACTIONS: Final[Mapping[tuple[str, str], Action | None]] = {
    (MANAGER, "Manage"): Action.MANAGE,
    (MANAGER, "Unmanage"): Action.UNMANAGE,  # or UNMANAGE_ANY, see Authority
    (MANAGER, "List"): None,
    (MANAGER, "Validate"): Action.DISCOVER,  # they make root look at paths and servers
    (MANAGER, "Discover"): Action.DISCOVER,
    (MANAGER, "GetConnection"): None,
    (CONNECTION, "Reconnect"): Action.CONTROL,
    (CONNECTION, "WaitFor"): None,
    (OBJECT_MANAGER, "GetManagedObjects"): None,
    (PROPERTIES, "Get"): None,
    (PROPERTIES, "GetAll"): None,
    (PROPERTIES, "Set"): None,  # always answered PropertyReadOnly
    (INTROSPECTABLE, "Introspect"): None,
    (PEER, "Ping"): None,
    (PEER, "GetMachineId"): None,
}
"""What everybody may call has None."""
