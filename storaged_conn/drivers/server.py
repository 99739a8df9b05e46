# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server part of a URI, for all drivers whose storage is on one."""

import re
from ipaddress import IPv6Address
from typing import Final

from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.sentinel import MAX_PORT, Address

AUTHORITY: Final = re.compile(r"(?:\[([^\[\]%]*)\]|([^\[\]:]*))(?::([0-9]{0,5}))?")
"""Source: RFC 3986 section 3.2; not by urllib, whose strictness differs from version to version."""

HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?")
"""Source: RFC 1123 section 2.1, and the underscore that is in use; never a leading hyphen."""


def read_server(uri: str, default_port: int | None = None) -> Address:
    """Read HOST[:PORT] of a URI with an authority.

    Args:
        uri: SCHEME://HOST[:PORT]/...; IPv6 addresses stand in brackets, without a zone.
        default_port: where there is none.

    Raises:
        InvalidArgumentError: it says what is wrong with the host or the port.
    """
    authority = uri.partition("://")[2].partition("/")[0]
    match = AUTHORITY.fullmatch(authority)
    if not match:
        raise InvalidArgumentError(
            f"uri: {authority!r} is no server; write HOST:PORT or [IPV6]:PORT"
        )
    bracketed, name, digits = match.groups()
    host = _read_name(name) if bracketed is None else _read_ipv6(bracketed)
    port = int(digits) if digits else default_port
    if port is None:
        raise InvalidArgumentError("uri: the port is missing; write HOST:PORT")
    if not 1 <= port <= MAX_PORT:
        raise InvalidArgumentError(f"uri: the port must be from 1 to {MAX_PORT}, not {port}")
    return Address(host, port)


def _read_name(text: str) -> str:
    if not HOST.fullmatch(text):
        raise InvalidArgumentError(f"uri: {text!r} is no host name or address")
    return text.rstrip(".").lower()


def _read_ipv6(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise InvalidArgumentError(f"uri: [{text}] is no IPv6 address") from None
