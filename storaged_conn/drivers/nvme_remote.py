# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where an NVMe subsystem is, as URIs write it and as the kernel does.

`nvme+tcp://HOST[:PORT]/NQN`, and the same with rdma; `nvme+fc://nn-0xNAME:pn-0xNAME/NQN`.
"""

import ipaddress
import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from storaged_conn.drivers.server import read_server
from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.sentinel import Address

PREFIX: Final = "nvme+"

TRANSPORTS: Final = ("tcp", "rdma", "fc")
"""Source: NVMe over Fabrics, as /dev/nvme-fabrics takes them; loop is of this host alone."""

PORT: Final = 4420
DISCOVERY_PORT: Final = 8009
"""Source: IANA, nvme and nvme-disc; NVM Express TCP Transport Specification, 3.1.1."""

DISCOVERY: Final = "nqn.2014-08.org.nvmexpress.discovery"
"""The subsystem that says which others there are. Source: NVM Express Base Specification, 4.5."""

MAX_NQN: Final = 223
"""Bytes. Source: NVM Express Base Specification, 4.5, NVMe Qualified Names."""

_NQN: Final = re.compile(r"nqn\.[0-9]{4}-[0-9]{2}\.[^\s/,;]+")
_FC: Final = re.compile(r"nn-0x[0-9a-f]{16}:pn-0x[0-9a-f]{16}")


class Remote(NamedTuple):
    """A subsystem at one address of one server: what one controller of this host is connected to.

    Attributes:
        transport: one of TRANSPORTS.
        host: a name or an address; for fc the node's and port's names, as the kernel wants them.
        port: 0 for fc.
        nqn: the subsystem's name; empty where only the server is meant.
    """

    transport: str
    host: str
    port: int
    nqn: str

    @property
    def server(self) -> Address | None:
        """Whom a sentinel can watch: only TCP is a TCP connection."""
        return Address(self.host, self.port) if self.transport == "tcp" else None

    @property
    def uri(self) -> str:
        """Write it as the canonical URI."""
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        where = host if self.port in {0, PORT} else f"{host}:{self.port}"
        return f"{PREFIX}{self.transport}://{where}/{quote(self.nqn, safe=':@,=+~')}"


def read_uri(uri: str) -> Remote:
    """Read the URI of a subsystem.

    Raises:
        InvalidArgumentError: it says what is wrong.
    """
    remote = read_server_uri(uri, PORT)
    check_nqn(remote.nqn, "uri: the subsystem")
    if remote.nqn == DISCOVERY:
        raise InvalidArgumentError("uri: that is the discovery service; ask it with Discover")
    return remote


def read_server_uri(uri: str, default_port: int) -> Remote:
    """Read a URI whose subsystem may be missing.

    Raises:
        InvalidArgumentError: it says what is wrong.
    """
    scheme, _, rest = uri.partition(":")
    transport = scheme.lower().removeprefix(PREFIX)
    if not rest.startswith("//") or "?" in rest or "#" in rest:
        raise InvalidArgumentError(f"uri: write it as {PREFIX}{transport}://HOST/NQN")
    authority, _, quoted = rest[2:].partition("/")
    nqn = unquote(quoted)
    if transport == "fc":
        name = authority.lower()
        if not _FC.fullmatch(name):
            raise InvalidArgumentError("uri: write it as nvme+fc://nn-0xNAME:pn-0xNAME/NQN")
        return Remote(transport, name, 0, nqn)
    server = read_server(uri, default_port)
    return Remote(transport, _one_spelling(server.host), server.port, nqn)


def check_nqn(nqn: str, what: str) -> None:
    """Refuse what is no NVMe Qualified Name, or would end the kernel's field.

    Raises:
        InvalidArgumentError: it is not.
    """
    if not nqn.isprintable() or len(nqn.encode()) > MAX_NQN or not _NQN.fullmatch(nqn):
        raise InvalidArgumentError(
            f"{what} must be an NQN, such as nqn.2014-08.org.example:name, of at most {MAX_NQN}"
            " bytes, without spaces, commas and slashes"
        )


def same_address(one: str, other: str) -> bool:
    """Say whether two addresses are the same, however they are written."""
    return _one_spelling(one) == _one_spelling(other)


def _one_spelling(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return host.lower()
