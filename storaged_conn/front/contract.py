# SPDX-License-Identifier: LGPL-2.1-or-later
"""The API as dbus/*.xml declares it: dispatch and introspection both come from those files."""

import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from storaged_conn.names import CONNECTION, MANAGER

EMITS: Final = "org.freedesktop.DBus.Property.EmitsChangedSignal"

DOCTYPE: Final = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)

# Source: D-Bus specification, Standard Interfaces.
STANDARD: Final = """<node>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg name="xml_data" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="props" type="a{sv}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg name="objects" type="a{oa{sa{sv}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object_path" type="o"/>
      <arg name="interfaces_and_properties" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object_path" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
</node>"""


@dataclass(frozen=True, slots=True)
class Method:
    """A declared method: what goes in and what comes out."""

    interface: str
    name: str
    takes: str
    gives: str


@dataclass(frozen=True, slots=True)
class Property:
    """A declared property; `emits` is true, const, invalidates or false."""

    name: str
    signature: str
    emits: str


@dataclass(frozen=True, slots=True)
class Interface:
    """A declared interface, and its XML without the documentation."""

    name: str
    xml: str
    methods: Mapping[str, Method] = field(default_factory=dict)
    properties: Mapping[str, Property] = field(default_factory=dict)


def load() -> dict[str, Interface]:
    """Read all interfaces: the two of ours, and the standard ones.

    Raises:
        FileNotFoundError: the installation lacks the XML files.
    """
    texts = [STANDARD, *(_find(name).read_text() for name in (MANAGER, CONNECTION))]
    roots = [ET.fromstring(text) for text in texts]  # noqa: S314  # our own files
    declared = [_interface(one) for root in roots for one in root.iter("interface")]
    return {interface.name: interface for interface in declared}


def introspection(interfaces: Iterable[Interface], children: Iterable[str]) -> str:
    """Describe one object.

    Args:
        interfaces: those that the object has.
        children: the last parts of the paths right below it.
    """
    nodes = "".join(f'  <node name="{child}"/>\n' for child in children)
    return f"{DOCTYPE}<node>\n{''.join(one.xml for one in interfaces)}{nodes}</node>\n"


def _find(name: str) -> Path:
    """Find an interface's file: beside the package in a source tree, else where it is installed."""
    source = Path(__file__).parents[2] / "dbus"
    installed = Path(sysconfig.get_path("data")) / "share/dbus-1/interfaces"
    for folder in (source, installed, Path("/usr/share/dbus-1/interfaces")):
        if (folder / f"{name}.xml").is_file():
            return folder / f"{name}.xml"
    raise FileNotFoundError(f"{name}.xml is not in {installed}; install storaged-conn again")


def _interface(element: ET.Element) -> Interface:
    name = element.attrib["name"]
    methods = (_method(name, one) for one in element.iter("method"))
    properties = (_property(one) for one in element.iter("property"))
    ET.indent(element, level=1)
    return Interface(
        name,
        "  " + ET.tostring(element, "unicode").rstrip() + "\n",
        {one.name: one for one in methods},
        {one.name: one for one in properties},
    )


def _method(interface: str, element: ET.Element) -> Method:
    def types(direction: str) -> str:
        return "".join(
            arg.attrib["type"]
            for arg in element.iter("arg")
            if arg.attrib.get("direction", "in") == direction
        )

    return Method(interface, element.attrib["name"], types("in"), types("out"))


def _property(element: ET.Element) -> Property:
    notes = {one.attrib["name"]: one.attrib["value"] for one in element.iter("annotation")}
    return Property(element.attrib["name"], element.attrib["type"], notes.get(EMITS, "true"))
