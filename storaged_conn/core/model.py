# SPDX-License-Identifier: LGPL-2.1-or-later
"""The values that everything else speaks in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from storaged_conn.core.secret import MAX_SECRET_BYTES, Secret
from storaged_conn.errors import InvalidArgumentError

Value = bool | int | str | tuple[str, ...] | Secret
"""An option's or an information's value. On the bus: b, x, s, as; a secret comes in as ay, and
never goes out."""

BYTES: Final = "ay"
"""The D-Bus signature of the options that are secrets."""

SIGNATURES: Final[Mapping[type, str]] = {bool: "b", int: "x", str: "s", tuple: "as"}
"""The D-Bus signatures of what goes out; a secret is not in it, so that none can."""

Given = tuple[str, object]
"""An option as a caller gave it: its D-Bus signature and its value."""

INTEGERS: Final = frozenset("ynqiuxt")
"""The D-Bus signatures of whole numbers. Source: D-Bus specification, Type System."""

MAX_INTEGER: Final = 2**63 - 1
"""What an `x` holds."""

MAX_CID_BYTES: Final = 255
"""Source: NAME_MAX, what users know from file names."""

MAX_URI_BYTES: Final = 4096
"""Source: PATH_MAX, the longest thing that a URI here can hold."""

MAX_OPTIONS: Final = 64
"""More options than any scheme knows."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{0,64}")
"""What an option may be called, misspelt or not; anything else could be a value, and a secret."""


class Lifetime(StrEnum):
    """How long a managed connection stays registered."""

    PERSISTENT = "persistent"
    RUNTIME = "runtime"
    CALLER = "caller"


@dataclass(frozen=True, slots=True)
class Target:
    """One real connection's identity: two ids with equal targets share one connection.

    Attributes:
        uri: canonical, never with a secret.
        options: what else makes it a different connection, sorted by name; never a secret.
        secrets: what it is connected with; with other secrets it is the same connection.
        trusted: root wants it, so the host's own credentials may be used where it has none.
    """

    uri: str
    options: tuple[tuple[str, Value], ...] = ()
    secrets: tuple[tuple[str, Secret], ...] = field(default=(), compare=False, repr=False)
    trusted: bool = field(default=False, compare=False)

    @property
    def scheme(self) -> str:
        """The part of the URI before the colon."""
        return self.uri.partition(":")[0]

    def option(self, name: str) -> Value | None:
        """Look one option up."""
        return dict(self.options).get(name)

    def secret(self, name: str) -> Secret | None:
        """Look one secret up."""
        return dict(self.secrets).get(name)


@dataclass(frozen=True, slots=True)
class Record:
    """What one client asked for: the intent that survives a restart.

    Attributes:
        owner: the uid that made it.
        scope: what the lifetime is bound to: nothing for persistent, the boot's id for runtime, the
            bus's id and the caller's unique name for caller.
        sealed: secrets as they are stored where they are encrypted, and not among the options.
    """

    cid: str
    uri: str
    options: Mapping[str, Value] = field(default_factory=dict)
    owner: int = 0
    lifetime: Lifetime = Lifetime.PERSISTENT
    scope: str = ""
    sealed: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def shown(self) -> dict[str, Value]:
        """The options without the secrets."""
        return {name: one for name, one in self.options.items() if not isinstance(one, Secret)}

    @property
    def secrets(self) -> dict[str, Secret]:
        """The options that are secrets."""
        return {name: one for name, one in self.options.items() if isinstance(one, Secret)}


@dataclass(frozen=True, slots=True)
class Present:
    """The kernel has the connection.

    Attributes:
        name: the kernel's name for it, unique on this host now, such as `mount-34`.
        ours: this service made it.
        responsive: the server answers.
        pending: the reason why it is of no use yet, such as devices that are still to come.
        info: what `ConnectionInfo` shows.
    """

    name: str
    ours: bool
    responsive: bool = True
    pending: str = ""
    mountpoint: str = ""
    devices: tuple[str, ...] = ()
    info: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Absent:
    """The kernel does not have the connection."""


Observation = Present | Absent | None
"""What a driver saw; None is unknown, and unknown is never treated as gone."""


class Topic(NamedTuple):
    """Something that a source can have news about, such as ("mount", "/mnt/x")."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """A connection that the kernel has and that nobody may have asked us for.

    Attributes:
        place: which of a target's topics it would be the news of; None where that is not known.
    """

    uri: str
    present: Present
    place: Topic | None = None


def check_cid(cid: str) -> None:
    """Refuse what cannot be a connection id.

    Raises:
        InvalidArgumentError: empty, no UTF-8, longer than MAX_CID_BYTES, or with a `/`, which only
            the temporary ids of unmanaged connections have.
    """
    if not cid:
        raise InvalidArgumentError("connection_id is empty; give 1 to 255 bytes")
    if _size(cid, "connection_id") > MAX_CID_BYTES:
        raise InvalidArgumentError(f"connection_id is longer than {MAX_CID_BYTES} bytes")
    if "/" in cid:
        raise InvalidArgumentError("connection_id contains '/', which is for unmanaged connections")


def check_uri(uri: str) -> str:
    """Refuse what cannot be a URI of any scheme.

    Returns:
        The scheme, in lower case.

    Raises:
        InvalidArgumentError: no UTF-8, no scheme, too long, a control character, or a user or
            password.
    """
    if _size(uri, "uri") > MAX_URI_BYTES:
        raise InvalidArgumentError(f"uri is longer than {MAX_URI_BYTES} bytes")
    if not uri.isprintable():
        raise InvalidArgumentError("uri contains an unprintable character; percent-encode it")
    scheme, colon, rest = uri.partition(":")
    if not colon or not scheme or not rest:
        raise InvalidArgumentError("uri has no scheme; write it as SCHEME:REST")
    if "@" in _authority(rest):
        raise InvalidArgumentError("uri contains a user or password; give them as options")
    return scheme.lower()


def _authority(rest: str) -> str:
    """Give what is between `//` and the next slash, of what comes after a scheme."""
    return rest[2:].partition("/")[0] if rest.startswith("//") else ""


def _size(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # a lone surrogate: no client can write one, but a record can
        raise InvalidArgumentError(f"{what} is no UTF-8") from None


def written(options: Mapping[str, Value]) -> dict[str, Given]:
    """Write options as a caller gave them, so that those of a record are read as strictly."""
    return {name: _written(value) for name, value in options.items()}


def _written(value: Value) -> Given:
    match value:
        case Secret():
            return BYTES, value.reveal()
        case tuple():
            return SIGNATURES[tuple], list(value)
        case _:
            return SIGNATURES[type(value)], value


def read_host(uri: str) -> str:
    """Give the server that a URI names after `//`, without its port; empty where it names none."""
    authority = _authority(uri.partition(":")[2])
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def read_options(
    given: Mapping[str, Given], known: Mapping[str, str], scheme: str
) -> dict[str, Value]:
    """Turn a caller's options into values; unknown names and wrong types never pass silently.

    Args:
        given: name to (D-Bus signature, value).
        known: name to the signature that it must have; where `x` is wanted, every integer type
            that fits is taken, and `ay` becomes a Secret.
        scheme: for the message.

    Raises:
        InvalidArgumentError: it names the option, and never repeats a value.
    """
    if len(given) > MAX_OPTIONS:
        raise InvalidArgumentError(f"options: more than {MAX_OPTIONS} are given")
    return {name: _read_option(name, one, known, scheme) for name, one in given.items()}


def _read_option(name: str, given: Given, known: Mapping[str, str], scheme: str) -> Value:
    wanted = known.get(name)
    if wanted is None:
        names = ", ".join(sorted(known))
        shown = repr(name) if _NAME.fullmatch(name) else "a name that is given"
        raise InvalidArgumentError(f"options: {shown} is unknown to {scheme}; it knows {names}")
    if wanted == BYTES:
        return _read_secret(name, given)
    signature, value = given
    match value:
        case bool() | str() if signature == wanted:
            return value
        case int() if wanted == "x" and signature in INTEGERS and value <= MAX_INTEGER:
            return value
        case list() if signature == wanted == "as":
            return tuple(str(item) for item in value)
    raise InvalidArgumentError(f"options: {name!r} must be of type {wanted}, not {signature}")


def _read_secret(name: str, given: Given) -> Secret:
    signature, value = given
    if signature != BYTES or not isinstance(value, bytes):
        raise InvalidArgumentError(
            f"options: {name!r} is a secret; give its bytes as {BYTES}, not {signature}"
        )
    if not value:
        raise InvalidArgumentError(f"options: {name!r} is empty; leave it out, or give the secret")
    if len(value) > MAX_SECRET_BYTES:
        raise InvalidArgumentError(f"options: {name!r} is longer than {MAX_SECRET_BYTES} bytes")
    return Secret(value)
