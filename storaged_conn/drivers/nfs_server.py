# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an NFS server says for itself: that it is there, what it exports, whether it has a path.

Source: RFC 1813 appendix I (the mount protocol); RFC 7530 sections 15.2, 16.13 and 16.22.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from storaged_conn.drivers.nfs_remote import Remote
from storaged_conn.drivers.paths import check_path
from storaged_conn.errors import (
    AccessDeniedError,
    AttemptError,
    AuthenticationError,
    InvalidArgumentError,
    NotOfferedError,
    ProtocolError,
)
from storaged_conn.system.rpc import Procedure, Reader, ask, find_port, numbers, opaque
from storaged_conn.system.sentinel import Address

NFS: Final = 100003
MOUNT: Final = 100005
EXPORT: Final = Procedure(MOUNT, 3, 5)
COMPOUND: Final = Procedure(NFS, 4, 1)
LOOKUP: Final = 15
PUTROOTFH: Final = 24

MAX_CLIENT: Final = 255
"""Bytes. Source: RFC 1813 section 5.1.1, MNTNAMLEN."""

MAX_NAMED: Final = 4
"""Clients that are named in a message."""

_VERDICTS: Final[dict[int, tuple[type[AttemptError], str]]] = {
    1: (AccessDeniedError, "see whom the server exports it to"),
    2: (NotOfferedError, "see what the server exports"),
    13: (AccessDeniedError, "see whom the server exports it to"),
    20: (NotOfferedError, "see what the server exports"),
    10016: (AuthenticationError, "give another 'sec'"),
}
"""NFS4ERR_PERM, NOENT, ACCESS, NOTDIR and WRONGSEC. Source: RFC 7530 section 13.1."""


class Export(NamedTuple):
    """What a server exports, and to which hosts and networks: to all if none is named."""

    path: str
    clients: tuple[str, ...]


async def knock(server: Address, version: str) -> None:
    """See that what answers on the port is NFS, in a version that will do.

    Args:
        server: its host is an address.
        version: as in the options, empty for any.

    Raises:
        AttemptError: it is not.
    """
    if version:
        await ask(server, Procedure(NFS, int(version[0])))
        return
    try:
        await ask(server, Procedure(NFS, 4))
    except ProtocolError:
        await ask(server, Procedure(NFS, 3))


async def list_exports(host: str) -> list[Export]:
    """Ask for all exports.

    Args:
        host: an address.

    Raises:
        AttemptError: there is no service that says so, as with NFS 4 alone, or it does not answer.
    """
    port = await find_port(host, *EXPORT[:2])
    return list(_read_exports(await ask(Address(host, port), EXPORT)))


async def find(remote: Remote, address: str, version: str) -> None:
    """See that a server has a path for us, as far as it says.

    Args:
        remote: the path.
        address: at which the server answers.
        version: as in the options, empty for any.

    Raises:
        AttemptError: it has not.
    """
    if version != "3":
        try:
            if await _look_up(remote, address) or version:
                return
        except NotOfferedError:
            if await _is_elsewhere(remote, address) and not version:
                return
            raise
    exports = await _exports_if_told(address)
    if exports is not None and not any(_covers(export.path, remote.path) for export in exports):
        raise NotOfferedError(f"{remote.source} is not exported; see what the server exports")


async def _look_up(remote: Remote, address: str) -> bool:
    """Walk to the path, as NFS 4.0 does; False where the server does not speak that."""
    names = [os.fsencode(name) for name in remote.path.split("/") if name]
    walk = b"".join(numbers(LOOKUP) + opaque(name) for name in names)
    arguments = opaque(b"") + numbers(0, len(names) + 1, PUTROOTFH) + walk
    try:
        answer = await ask(Address(address, remote.server.port), COMPOUND, arguments)
    except ProtocolError:
        return False
    status = answer.number()
    if status in _VERDICTS:
        kind, advice = _VERDICTS[status]
        raise kind(f"the server has no {remote.source} for this host; {advice}")
    return status == 0


async def _is_elsewhere(remote: Remote, address: str) -> bool:
    """Say whether what NFS 4 does not have is there for version 3: its paths may be others.

    Raises:
        AccessDeniedError: it is there for others.
    """
    for export in await _exports_if_told(address) or ():
        if export.path == remote.path:
            if not export.clients or "*" in export.clients:
                return True
            clients = ", ".join(export.clients[:MAX_NAMED])
            raise AccessDeniedError(f"{remote.source} is exported to {clients}, not to this host")
    return False


async def _exports_if_told(address: str) -> list[Export] | None:
    try:
        return await list_exports(address)
    except AttemptError:
        return None


def _covers(export: str, path: str) -> bool:
    return path == export or path.startswith(f"{export.rstrip('/')}/")


def _read_exports(answer: Reader) -> Iterator[Export]:
    """Read the list, without what is no path. Source: RFC 1813 section 5.2.5."""
    while answer.number():
        path = os.fsdecode(answer.opaque())
        clients = []
        while answer.number():
            clients.append(_clean(answer.opaque()))
        with suppress(InvalidArgumentError):
            check_path(path, "the export")
            yield Export(path, tuple(clients))


def _clean(raw: bytes) -> str:
    """Make the name of a client fit for a message, and for nobody else's name."""
    text = raw[:MAX_CLIENT].decode(errors="replace")
    return "".join(one if one.isprintable() else "?" for one in text)
