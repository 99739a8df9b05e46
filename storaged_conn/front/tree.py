# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tree of objects on the bus: which there are, what they have, and what answers."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final

from storaged_conn.bus import wire
from storaged_conn.bus.wire import Variant
from storaged_conn.front.call import Call, Handler, ProtocolError, Reply
from storaged_conn.front.contract import Interface, Method, introspection
from storaged_conn.front.faces import ConnectionFace, ManagerFace
from storaged_conn.front.objects import Objects
from storaged_conn.names import (
    CONNECTION,
    INTROSPECTABLE,
    MANAGER,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
    ROOT,
    connection_id,
    object_path,
)

BASICS: Final = (PEER, INTROSPECTABLE, PROPERTIES)

ANCESTORS: Final = {"/": "org", "/org": "storage", "/org/storage": "Connection"}
"""Paths above ours, each with the one child that leads to us; `busctl tree` walks them."""


class Tree:
    """Answers for every path: the manager's, the connections', and those above."""

    def __init__(
        self,
        contract: Mapping[str, Interface],
        objects: Objects,
        faces: tuple[ManagerFace, ConnectionFace],
        options: Mapping[str, Mapping[str, str]],
        machine_id: str,
    ) -> None:
        """Put the objects together.

        Args:
            contract: the declared interfaces.
            objects: the connections as the bus sees them.
            faces: what answers the methods of ours.
            options: the options of each scheme, for the property of that name.
            machine_id: see machine-id(5).
        """
        self._contract = contract
        self._objects = objects
        self._faces = {MANAGER: faces[0], CONNECTION: faces[1]}
        self._machine_id = machine_id
        self._root = _pick(contract, (*BASICS, OBJECT_MANAGER, MANAGER))
        self._leaf = _pick(contract, (*BASICS, CONNECTION))
        self._above = _pick(contract, (PEER, INTROSPECTABLE))
        self._constants: Mapping[str, object] = {
            "Version": version("storaged-conn"),
            "Schemes": sorted(options),
            "Options": options,
        }
        self._standard: Mapping[tuple[str, str], Handler] = {
            (PEER, "Ping"): lambda call: (),
            (PEER, "GetMachineId"): lambda call: (self._machine_id,),
            (INTROSPECTABLE, "Introspect"): self._introspect,
            (PROPERTIES, "Get"): self._get,
            (PROPERTIES, "GetAll"): self._get_all,
            (PROPERTIES, "Set"): self._set,
            (OBJECT_MANAGER, "GetManagedObjects"): lambda call: self._objects.managed_body(),
        }

    def interfaces(self, path: str) -> Mapping[str, Interface] | None:
        """See dispatch.Tree."""
        if path == ROOT:
            return self._root
        cid = connection_id(path)
        if cid is not None and self._objects.has(cid):
            return self._leaf
        return self._above if path in ANCESTORS else None

    def handler(self, method: Method) -> Handler:
        """See dispatch.Tree."""
        standard = self._standard.get((method.interface, method.name))
        if standard:
            return standard
        found: Handler = getattr(self._faces[method.interface], method.name)
        return found

    def _introspect(self, call: Call) -> Reply:
        children: Sequence[str] = ()
        if call.path == ROOT:
            children = [object_path(cid).rpartition("/")[2] for cid in self._objects.ids()]
        elif call.path in ANCESTORS:
            children = [ANCESTORS[call.path]]
        interfaces = self.interfaces(call.path) or {}
        return (introspection(interfaces.values(), children),)

    def _get(self, call: Call, interface: str, name: str) -> Reply:
        self._declared(call, interface, name)
        return (self._values(call)[name],)

    def _get_all(self, call: Call, interface: str) -> Reply:
        interfaces = self.interfaces(call.path) or {}
        if interface and interface not in interfaces:
            raise ProtocolError("UnknownInterface", f"{call.path} has no interface {interface}")
        cid = connection_id(call.path)
        if cid is not None and interface in {"", CONNECTION}:
            return self._objects.all_body(cid)
        return (self._values(call) if interface in {"", MANAGER} and call.path == ROOT else {},)

    def _set(self, call: Call, interface: str, name: str, value: Variant) -> Reply:
        self._declared(call, interface, name)
        raise ProtocolError("PropertyReadOnly", f"{name} cannot be set; methods change things")

    def _declared(self, call: Call, interface: str, name: str) -> None:
        """Refuse what the object does not have; an empty interface stands for any."""
        interfaces = self.interfaces(call.path) or {}
        if interface and interface not in interfaces:
            raise ProtocolError("UnknownInterface", f"{call.path} has no interface {interface}")
        asked = [interfaces[interface]] if interface else interfaces.values()
        if not any(name in one.properties for one in asked):
            raise ProtocolError("UnknownProperty", f"{call.path} has no property {name}")

    def _values(self, call: Call) -> dict[str, Variant]:
        cid = connection_id(call.path)
        if cid is not None:
            (values,) = wire.read("a{sv}", self._objects.all_body(cid))
            return dict(values)
        declared = self._contract[MANAGER].properties
        return {
            name: wire.variant(declared[name].signature, value)
            for name, value in self._constants.items()
        }


def _pick(contract: Mapping[str, Interface], names: Sequence[str]) -> dict[str, Interface]:
    return {name: contract[name] for name in names}
