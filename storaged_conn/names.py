# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every name on the bus, and the way from a connection id to an object path and back."""

from typing import Final

SERVICE: Final = "org.storage.Connection"
ROOT: Final = "/org/storage/Connection"
MANAGER: Final = "org.storage.Connection.Manager1"
CONNECTION: Final = "org.storage.Connection1"

DBUS: Final = "org.freedesktop.DBus"
DBUS_PATH: Final = "/org/freedesktop/DBus"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
INTROSPECTABLE: Final = "org.freedesktop.DBus.Introspectable"
PEER: Final = "org.freedesktop.DBus.Peer"
OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"

_ALNUM: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_DIGITS: Final = frozenset(b"0123456789")


def object_path(cid: str) -> str:
    """Give every connection id a path of its own, so that two never share one.

    Source: sd_bus_path_encode(3): letters and digits stay, a leading digit and every other
    byte become `_xx`, the empty string becomes `_`.
    """
    label = "".join(
        chr(byte) if byte in _ALNUM and not (place == 0 and byte in _DIGITS) else f"_{byte:02x}"
        for place, byte in enumerate(cid.encode())
    )
    return f"{ROOT}/{label or '_'}"


def connection_id(path: str) -> str | None:
    """Read the id back out of an object path, or None where the path is no connection's."""
    prefix, _, label = path.rpartition("/")
    if prefix != ROOT:
        return None
    if label == "_":
        return ""
    head, *parts = label.split("_")
    try:
        raw = head.encode("ascii") + b"".join(
            bytes.fromhex(part[:2]) + part[2:].encode("ascii") for part in parts
        )
        cid = raw.decode()
    except ValueError:
        return None
    return cid if object_path(cid) == path else None
