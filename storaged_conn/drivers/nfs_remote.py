# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where an NFS export is, as URIs write it, as mount(8) does, and as the kernel shows it.

`nfs://HOST[:PORT]/EXPORT` is canonical; `nfs://HOST:/EXPORT` and `nfs://HOST:EXPORT`, which look
like what mount(8) takes, are the same. Digits alone after the colon are a port, and a second colon
is of an IPv6 address without its brackets.
"""

import os
import re
from typing import Final, NamedTuple
from urllib.parse import quote

from storaged_conn.drivers.paths import check_path, decode, straighten
from storaged_conn.drivers.server import read_server
from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.mountinfo import Mount
from storaged_conn.system.sentinel import Address

FSTYPES: Final = frozenset({"nfs", "nfs4"})

PORT: Final = 2049
"""Source: RFC 7530 section 3.1."""

_AUTHORITY: Final = re.compile(r"(\[[^\[\]]*\]|[^\[\]:/]*)(:[0-9]+(?=/|$))?(:?)(.*)", re.DOTALL)
_SOURCE: Final = re.compile(r"(\[[^\[\]]*\]|[^\[\]:/]+):(/.*)", re.DOTALL)
_DIGITS: Final = re.compile("[0-9]{1,5}")


class Remote(NamedTuple):
    """An export, or a directory in one.

    Attributes:
        path: absolute, and written in the one way; "/" is also what NFS 4 calls the root of all.
    """

    server: Address
    path: str

    @property
    def uri(self) -> str:
        """Write it as the canonical URI."""
        host, port = self.host, self.server.port
        where = host if port == PORT else f"{host}:{port}"
        return f"nfs://{where}{quote(os.fsencode(self.path), safe='/:@,=+~')}"

    @property
    def source(self) -> str:
        """Write it as mount(8) wants it."""
        return f"{self.host}:{self.path}"

    @property
    def host(self) -> str:
        """Write the server's host, in brackets where it needs them."""
        host = self.server.host
        return f"[{host}]" if ":" in host else host


def read_host(uri: str, port: int | None = None) -> tuple[Address, str]:
    """Read the server of a URI.

    Args:
        uri: beginning with `nfs:`.
        port: what else says which.

    Returns:
        It, and the rest: the path as it was written, perhaps empty.

    Raises:
        InvalidArgumentError: it says what is wrong.
    """
    slashes, rest = uri.partition(":")[2][:2], uri.partition(":")[2][2:]
    match = _AUTHORITY.fullmatch(rest)
    host, digits, colon, path = match.groups(default="") if match else ("",) * 4
    if slashes != "//" or not match or (colon and ":" in path.partition("/")[0]):
        raise InvalidArgumentError("uri: write it as nfs://HOST/EXPORT, IPv6 as [ADDRESS]")
    server = read_server(f"nfs://{host}{digits}", port or PORT)
    if port and server.port != port:
        raise InvalidArgumentError(f"options: 'port' is {port}, and the uri says {server.port}")
    return server, f"/{path}" if colon and not path.startswith("/") else path


def read_uri(uri: str, port: int | None = None) -> Remote:
    """Read a URI in any of its spellings.

    Raises:
        InvalidArgumentError: it says what is wrong.
    """
    server, quoted = read_host(uri, port)
    if not quoted:
        raise InvalidArgumentError("uri: the export is missing; write nfs://HOST/EXPORT")
    path = straighten(decode(quoted, "uri: the export"))
    check_path(path, "uri: the export")
    return Remote(server, path)


def read_mount(mount: Mount) -> Remote | None:
    """Read where what is mounted comes from; None where that has no URI."""
    match = _SOURCE.fullmatch(mount.source)
    if mount.fstype not in FSTYPES or not match:
        return None
    port = dict(flag.partition("=")[::2] for flag in mount.super_options).get("port", "")
    host, path = match.groups()
    try:
        server = read_server(f"nfs://{host}", int(port) if _DIGITS.fullmatch(port) else PORT)
        check_path(path, "")
    except InvalidArgumentError:
        return None
    return Remote(server, path)
