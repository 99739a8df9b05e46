# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server part of a URI, for all drivers whose storage is on one."""

import re
from typing import Final
from urllib.parse import urlsplit

from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.sentinel import Address

HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?")
"""Source: RFC 1123 section 2.1, and the underscore that is in use; never a leading hyphen."""


def read_server(uri: str, default_port: int | None = None) -> Address:
    """Read HOST[:PORT] of a URI with an authority.

    Args:
        uri: SCHEME://HOST[:PORT]/...; IPv6 addresses stand in brackets.
        default_port: where there is none.

    Raises:
        InvalidArgumentError: it says what is wrong with the host or the port.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port or default_port
    except ValueError as error:
        raise InvalidArgumentError(f"uri: {error}; write HOST:PORT, IPv6 as [ADDRESS]") from None
    if ":" not in host and not HOST.fullmatch(host):
        raise InvalidArgumentError(f"uri: {host!r} is no host name or address")
    if port is None:
        raise InvalidArgumentError("uri: the port is missing; write HOST:PORT")
    return Address(host.rstrip(".").lower(), port)
