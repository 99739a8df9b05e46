# SPDX-License-Identifier: LGPL-2.1-or-later
"""GLib's own client of an ObjectManager, for tests/test_glib.py: ADDRESS, run by Debian's Python.

Writes a line of JSON for all that it sees: [what, object path, properties].
"""

import json
import sys
from importlib import import_module
from typing import Any

gi = import_module("gi")  # where no type checker sees it
gi.require_version("Gio", "2.0")
Gio, GLib = (import_module(f"gi.repository.{name}") for name in ("Gio", "GLib"))

SERVICE = "org.storage.Connection"
ROOT = "/org/storage/Connection"
CONNECTION = "org.storage.Connection1"


def say(what: str, path: str, properties: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps([what, path, properties]) + "\n")
    sys.stdout.flush()


def properties(thing: Any) -> dict[str, Any]:
    proxy = thing.get_interface(CONNECTION)
    names = proxy.get_cached_property_names() if proxy else []
    return {name: proxy.get_cached_property(name).unpack() for name in names}


def added(_: Any, thing: Any) -> None:
    say("added", thing.get_object_path(), properties(thing))


def removed(_: Any, thing: Any) -> None:
    say("removed", thing.get_object_path(), {})


def changed(_: Any, thing: Any, proxy: Any, changes: Any, invalidated: Any) -> None:
    say("changed", thing.get_object_path(), changes.unpack())


def main(address: str) -> None:
    flags = Gio.DBusConnectionFlags
    flags = flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION
    bus = Gio.DBusConnection.new_for_address_sync(address, flags, None, None)
    nothing = Gio.DBusObjectManagerClientFlags.NONE
    manager = Gio.DBusObjectManagerClient.new_sync(bus, nothing, SERVICE, ROOT, None, None, None)
    manager.connect("object-added", added)
    manager.connect("object-removed", removed)
    manager.connect("interface-proxy-properties-changed", changed)
    for thing in manager.get_objects():
        say("there", thing.get_object_path(), properties(thing))
    say("ready", manager.get_name_owner(), {})
    GLib.MainLoop().run()


main(sys.argv[1])
