# SPDX-License-Identifier: LGPL-2.1-or-later
"""`iscsi://HOST[:PORT]/IQN[;portal=TPGT][;lun=N]` and its options, as users write them.

Nothing of this may be anything but a name where it becomes a path, an argument or a line of a node
record.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from storaged_conn.core.model import Target, Topic, Value
from storaged_conn.core.secret import Secret
from storaged_conn.drivers.paths import decode
from storaged_conn.drivers.server import read_server
from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.iscsi import Where
from storaged_conn.system.iscsi_login import PORT
from storaged_conn.system.iscsi_nodes import MAX_VALUE
from storaged_conn.system.iscsi_pdu import Login
from storaged_conn.system.sentinel import Address

OPTIONS: Final[Mapping[str, str]] = {
    "username": "s",
    "password": "ay",
    "username-in": "s",
    "password-in": "ay",
    "interface": "s",
    "header-digest": "s",
    "replacement-timeout": "x",
    "login-timeout": "x",
    "luns": "as",
    "force": "b",
}

OWN: Final = frozenset({"luns", "force"})
"""In these, ids that share a session may differ."""

DIGESTS: Final = {"none": "None", "crc32c": "CRC32C"}
"""Source: RFC 7143 section 13.1."""

LOGIN_TIMEOUT: Final = 15
"""Seconds. Source: iscsid.conf, node.conn[0].timeo.login_timeout."""

LIMITS: Final = {"replacement-timeout": (0, 86400), "login-timeout": (1, 300)}
"""Seconds. Source: iscsid.conf: 0 fails I/O at once. iscsid takes -1, too: for ever, which would
hold up every shutdown."""

SECONDS: Final = {
    "replacement-timeout": "node.session.timeo.replacement_timeout",
    "login-timeout": "node.conn[0].timeo.login_timeout",
}
"""The lines of a node record. Source: iscsid.conf."""

MAX_GROUP: Final = 65535
MAX_LUN: Final = 16383
"""Source: RFC 7143 section 13.9; SAM-5 section 4.7.7.3, flat space addressing."""

_NAME: Final = re.compile(
    r"iqn\.[0-9]{4}-[0-9]{2}\.[A-Za-z0-9.-]+(:[A-Za-z0-9.:_@+=~-]*)?"
    r"|eui\.[0-9A-Fa-f]{16}|naa\.([0-9A-Fa-f]{16}){1,2}"
)
"""Source: RFC 7143 section 4.2.7, where names are in lower case; but not all targets obey, and they
compare what they are given. No other alphabet, though it allows that."""

_INTERFACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")

_PARAMETER: Final = re.compile(r"(portal|lun)=([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Remote:
    """A target at a portal, or one LUN of it.

    Attributes:
        group: the target portal group tag, where it matters.
    """

    server: Address
    iqn: str
    group: int | None = None
    lun: int | None = None

    @property
    def uri(self) -> str:
        """Write it as the canonical URI."""
        lun = "" if self.lun is None else f";lun={self.lun}"
        return f"{self.session_uri}{lun}"

    @property
    def session_uri(self) -> str:
        """Write what all ids have in common that share the session."""
        group = "" if self.group is None else f";portal={self.group}"
        return f"iscsi://{write_server(self.server)}/{self.iqn}{group}"


def write_server(server: Address) -> str:
    """Write a server without the port that it has by default."""
    return server.text.removesuffix(f":{PORT}") if server.port == PORT else server.text


@lru_cache(maxsize=1024)
def read_uri(uri: str) -> Remote:
    """Read a URI.

    Raises:
        InvalidArgumentError: it says what is wrong.
    """
    if uri.partition(":")[2][:2] != "//":
        raise InvalidArgumentError("uri: write it as iscsi://HOST/IQN, IPv6 as [ADDRESS]")
    server = read_server(uri, PORT)
    path = decode(uri.partition("://")[2].partition("/")[2], "uri: the target")
    iqn, *rest = path.split(";")
    if not _NAME.fullmatch(iqn) or len(iqn) > MAX_VALUE:
        raise InvalidArgumentError(f"uri: {iqn!r} is no target; write iqn.YYYY-MM.DOMAIN:NAME")
    found = {}
    for parameter in rest:
        match = _PARAMETER.fullmatch(parameter)
        if not match or match[1] in found:
            raise InvalidArgumentError(f"uri: {parameter!r}: write ;portal=TPGT or ;lun=N, once")
        found[match[1]] = int(match[2])
    group, lun = found.get("portal"), found.get("lun")
    if group is not None and group > MAX_GROUP:
        raise InvalidArgumentError(f"uri: the portal must be from 0 to {MAX_GROUP}")
    if lun is not None and lun > MAX_LUN:
        raise InvalidArgumentError(f"uri: the lun must be from 0 to {MAX_LUN}")
    return Remote(server, iqn, group, lun)


def read_portal(uri: str) -> Address:
    """Read what is to be asked for its targets.

    Raises:
        InvalidArgumentError: it is more than a server.
    """
    rest = uri.partition("://")[2].partition("/")[2]
    if uri.partition(":")[2][:2] != "//" or rest:
        raise InvalidArgumentError("uri: write it as iscsi://HOST[:PORT]")
    return read_server(uri, PORT)


def read_options(options: Mapping[str, Value]) -> dict[str, Value]:
    """Check the options, and leave out what is the default.

    A name without its password passes: so it is kept while what was unmanaged ends.

    Raises:
        InvalidArgumentError: it names the option, and never repeats a secret.
    """
    found = {name: _CHECKS[name](name, value) for name, value in options.items()}
    if "password" in found and "username" not in found:
        raise InvalidArgumentError("options: 'password' without 'username'")
    if "password-in" in found and "password" not in found:
        raise InvalidArgumentError("options: 'password-in' without 'password'")
    if "username-in" in found and "password-in" not in found:
        raise InvalidArgumentError("options: 'username-in' without 'password-in'")
    defaults = {"interface": "default", "header-digest": "none", "luns": (), "force": False}
    return {name: value for name, value in found.items() if value != defaults.get(name)}


def where(target: Target, address: str) -> Where:
    """Say which session a target is, at an address."""
    remote = read_uri(target.uri)
    return Where(remote.iqn, address, remote.server.port, interface(target))


def interface(target: Target) -> str:
    """Give the iface record."""
    return str(target.option("interface") or "default")


def topic(remote: Remote, interface: str) -> Topic:
    """Give what all have in common that share a session."""
    return Topic("session", f"{remote.server.text}/{remote.iqn}/{interface}")


def terms(target: Target) -> tuple[object, ...]:
    """Give what must be the same for all ids that share a session."""
    options = tuple(pair for pair in target.options if pair[0] not in OWN)
    return (read_uri(target.uri).session_uri, options)


def luns(target: Target) -> frozenset[int]:
    """Give the LUNs that have to be there."""
    lun, listed = read_uri(target.uri).lun, target.option("luns")
    numbers = frozenset(int(one) for one in listed) if isinstance(listed, tuple) else frozenset()
    return numbers | ({lun} if lun is not None else frozenset())


def login_timeout(target: Target) -> int:
    """Give the seconds that a login may take."""
    given = target.option("login-timeout")
    return given if isinstance(given, int) else LOGIN_TIMEOUT


def settings(target: Target) -> dict[str, str | Secret]:
    """Give the lines of the node record that the options ask for."""
    lines: dict[str, str | Secret] = {}
    for name, key in SECONDS.items():
        if (seconds := target.option(name)) is not None:
            lines[key] = str(seconds)
    if digest := target.option("header-digest"):
        lines["node.conn[0].iscsi.HeaderDigest"] = DIGESTS[str(digest)]
    return lines | _credentials(target)


def _credentials(target: Target) -> dict[str, str | Secret]:
    lines: dict[str, str | Secret] = {}
    if not target.trusted:
        lines["node.session.auth.authmethod"] = "None"
    if password := target.secret("password"):
        lines["node.session.auth.authmethod"] = "CHAP"
        lines["node.session.auth.username"] = str(target.option("username"))
        lines["node.session.auth.password"] = password
    if password_in := target.secret("password-in"):
        if username_in := target.option("username-in"):
            lines["node.session.auth.username_in"] = str(username_in)
        lines["node.session.auth.password_in"] = password_in
    return lines


def login(lines: Mapping[str, str | Secret], initiator: str, iqn: str) -> Login:
    """Say who logs in as the lines of a node record say it."""
    auth = {key.removeprefix("node.session.auth."): value for key, value in lines.items()}
    chap = auth.get("authmethod") == "CHAP"
    return Login(
        initiator,
        iqn,
        str(auth.get("username", "")),
        _secret(auth.get("password")) if chap else None,
        str(auth.get("username_in", "")),
        _secret(auth.get("password_in")) if chap else None,
        str(auth.get("chap_algs", "MD5")),
    )


def _secret(value: str | Secret | None) -> Secret | None:
    return Secret(value.encode()) if isinstance(value, str) else value


def _check_text(name: str, value: Value) -> Value:
    text = str(value)
    if not text.isprintable() or text != text.strip() or not text:
        raise InvalidArgumentError(f"options: {name!r} has characters that no node record can hold")
    if len(text.encode()) > MAX_VALUE:
        raise InvalidArgumentError(f"options: {name!r} is longer than {MAX_VALUE} bytes")
    return value


def _check_secret(name: str, value: Value) -> Value:
    if isinstance(value, Secret):
        try:
            _check_text(name, value.reveal().decode())
        except UnicodeDecodeError:
            raise InvalidArgumentError(f"options: {name!r} must be UTF-8") from None
    return value


def _check_interface(name: str, value: Value) -> Value:
    if not _INTERFACE.fullmatch(str(value)):
        raise InvalidArgumentError(f"options: {name!r} is no iface record; see iscsiadm(8)")
    return value


def _check_digest(name: str, value: Value) -> Value:
    if value not in DIGESTS:
        raise InvalidArgumentError(f"options: {name!r} must be one of {', '.join(DIGESTS)}")
    return value


def _check_seconds(name: str, value: Value) -> Value:
    least, most = LIMITS[name]
    if not isinstance(value, int) or not least <= value <= most:
        raise InvalidArgumentError(f"options: {name!r} must be from {least} to {most} seconds")
    return value


def _check_luns(name: str, value: Value) -> Value:
    given = value if isinstance(value, tuple) else ()
    if not all(re.fullmatch("[0-9]{1,5}", one) and int(one) <= MAX_LUN for one in given):
        raise InvalidArgumentError(f"options: {name!r} must be numbers from 0 to {MAX_LUN}")
    return tuple(str(one) for one in sorted({int(one) for one in given}))


def _check_nothing(name: str, value: Value) -> Value:
    return value


_CHECKS: Final = {
    "username": _check_text,
    "password": _check_secret,
    "username-in": _check_text,
    "password-in": _check_secret,
    "interface": _check_interface,
    "header-digest": _check_digest,
    "replacement-timeout": _check_seconds,
    "login-timeout": _check_seconds,
    "luns": _check_luns,
    "force": _check_nothing,
}
