# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages as bytes: headers by hand, bodies by dbus-next 0.2.3.

Why not dbus-next's own Message in both directions? Its parser reads a body before anybody can
refuse it (a 32 MiB array of variants blocks the loop for 55 s), ends the connection at a header
field that it does not know (dbus-broker passes such fields on), and takes 110 us for a header; its
writer lets NUL and lone surrogates through, for which the bus disconnects us. So the header is read
and written here, the body is read only when the dispatcher has seen whom it is from and that its
signature is the declared one, and what goes out is scrubbed.

The layout is that of the D-Bus specification, "Message Format" and "Marshaling". Entries of arrays
of structs and dictionaries begin at multiples of 8, so their bytes do not depend on where they
stand: `Entry` bytes are marshalled once and joined into as many messages as there are.
"""

import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from struct import Struct
from struct import error as StructError
from typing import Any, Final, NewType

if sys.version_info >= (3, 15):  # removed there; dbus_next.service only names it
    typing.no_type_check_decorator = lambda decorator: decorator

from dbus_next.__version__ import __version__
from dbus_next._private.marshaller import Marshaller
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.signature import SignatureTree, Variant

from storaged_conn.core.model import SIGNATURES

__all__ = ["Entry", "Field", "Flag", "Kind", "Message", "Variant"]

if __version__ != "0.2.3":
    raise ImportError("storaged-conn relies on private names of dbus-next 0.2.3; install that")

MAX_HEADER: Final = 16 * 1024
"""Bytes of header fields that are read. Source: six fields of at most 255 bytes, and a path."""

MAX_SENT: Final = 30 * 1024 * 1024
"""Bytes of a body that is sent. Source: dbus-daemon(1) takes 32 MiB and else disconnects."""

CACHED_SIGNATURES: Final = 128
"""dbus-next keeps every signature for ever, the longest at 45 KiB; callers can send as many as they
like."""

FIXED: Final = 16
"""Bytes before the header fields, with their length. Source: specification, Message Format."""

Entry = NewType("Entry", bytes)
"""The marshalled bytes of one dictionary entry, to be placed at a multiple of 8."""


class Kind(IntEnum):
    """What a message is. Source: specification, Message Format."""

    CALL = 1
    RETURN = 2
    ERROR = 3
    SIGNAL = 4


class Flag(IntFlag):
    """Header flags. Source: specification, Message Format."""

    NO_REPLY_EXPECTED = 1
    NO_AUTO_START = 2
    ALLOW_INTERACTIVE_AUTHORIZATION = 4


class Field(IntEnum):
    """Header fields. Source: specification, Header Fields."""

    PATH = 1
    INTERFACE = 2
    MEMBER = 3
    ERROR_NAME = 4
    REPLY_SERIAL = 5
    DESTINATION = 6
    SENDER = 7
    SIGNATURE = 8


_FIELD_TYPES: Final = {Field.PATH: "o", Field.REPLY_SERIAL: "u", Field.SIGNATURE: "g"}
_ORDERS: Final = {ord("l"): "<", ord("B"): ">"}
_U32: Final = {"<": Struct("<I"), ">": Struct(">I")}
_NUMBERS: Final = {
    "b": Struct("<I"),
    "i": Struct("<i"),
    "u": Struct("<I"),
    "t": Struct("<Q"),
    "x": Struct("<q"),
}
_HEAD: Final = {"<": Struct("<BBBBIII"), ">": Struct(">BBBBIII")}


class MalformedError(Exception):
    """Bytes that are no message, or no value of the promised signature."""


class _BoundedCache(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        if len(self) >= CACHED_SIGNATURES:
            del self[next(iter(self))]
        super().__setitem__(key, value)


SignatureTree._cache = _BoundedCache()


@dataclass(slots=True)
class Message:
    """One message; the body stays bytes until `arguments` is called."""

    kind: int
    flags: int = 0
    serial: int = 0
    fields: dict[int, Any] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)  # it may have secrets
    order: str = "<"

    def text(self, name: Field) -> str:
        """Give a header field that is text, empty where it is missing."""
        value = self.fields.get(name, "")
        return value if isinstance(value, str) else ""

    @property
    def reply_to(self) -> int:
        """The serial of the call that this answers, or 0."""
        value = self.fields.get(Field.REPLY_SERIAL, 0)
        return value if isinstance(value, int) else 0

    def arguments(self) -> list[Any]:
        """Read the body: list for an array or struct, dict, Variant with signature and value.

        Raises:
            MalformedError: the bytes are not what the signature says.
        """
        return read(self.text(Field.SIGNATURE), self.body, self.order)


def message_size(head: bytes | bytearray, at: int) -> tuple[int, int]:
    """Read how long a message is.

    Args:
        head: a buffer with at least FIXED bytes from `at`.
        at: where the message begins.

    Returns:
        Bytes up to the body, and in all.

    Raises:
        MalformedError: not the beginning of a message.
    """
    order = _order(head[at])
    _, _, _, protocol, body, _, fields = _HEAD[order].unpack_from(head, at)
    if protocol != 1:
        raise MalformedError(f"protocol version {protocol}")
    start = FIXED + _padded(fields, 8)
    return start, start + body


def parse(head: bytes, body: bytes) -> Message:
    """Read a header; unknown fields are kept and ignored, as the specification wants.

    Args:
        head: the bytes up to the body.
        body: the bytes of the body, or none where it was too large to be kept.

    Raises:
        MalformedError: not the header of a message.
    """
    order = _order(head[0])
    _, kind, flags, _, _, serial, length = _HEAD[order].unpack_from(head)
    message = Message(kind, flags, serial, {}, body, order)
    try:
        _read_fields(message, head, FIXED + length)
    except (IndexError, ValueError, StructError) as error:
        raise MalformedError("header fields that end too early, or are no text") from error
    return message


def _read_fields(message: Message, head: bytes, end: int) -> None:
    at, order = FIXED, message.order
    while at < end:
        at = _padded(at, 8)
        code, size = head[at], head[at + 1]
        signature = head[at + 2 : at + 2 + size]
        at += 3 + size
        if signature in {b"s", b"o"}:
            at = _padded(at, 4)
            (size,) = _U32[order].unpack_from(head, at)
            message.fields[code] = head[at + 4 : at + 4 + size].decode()
            at += 5 + size
        elif signature == b"g":
            message.fields[code] = head[at + 1 : at + 1 + head[at]].decode()
            at += 2 + head[at]
        else:
            at = _padded(at, 4) if signature == b"u" else at
            value, at = _read_one(signature.decode(), head, at, order)
            message.fields[code] = value


def marshal(signature: str, body: Sequence[object]) -> bytes:
    """Write a body; NUL and lone surrogates in its texts become replacement characters.

    Raises:
        SignatureBodyMismatchError: a value does not fit the signature: a defect of the caller.
    """
    return bytes(_Scrubbing(signature, list(body)).marshall())


def read(signature: str, body: bytes, order: str = "<") -> list[Any]:
    """Read a body.

    Raises:
        MalformedError: the bytes are not what the signature says.
    """
    reader = Unmarshaller(None)
    reader.buf = body
    reader.endian = ord("l") if order == "<" else ord("B")
    try:
        return [reader.read_argument(one) for one in SignatureTree._get(signature).types]
    except Exception as error:  # it raises bare Exception and TypeError, among others
        # AttributeError: it wanted more bytes than there are, from a stream that is not there
        raise MalformedError(f"body is no {signature!r}: {type(error).__name__}") from error


def header(message: Message) -> bytes:
    """Write the header of a message that goes out, for the body that it has."""
    fields = bytearray()
    for code, value in message.fields.items():
        kind = _FIELD_TYPES.get(Field(code), "s")
        fields += bytes(-len(fields) % 8)
        fields += bytes((code, 1, ord(kind), 0))
        if kind == "u":
            fields += _U32["<"].pack(value)
        elif kind == "g":
            fields += bytes((len(value),)) + value.encode() + b"\0"
        else:
            fields += _text(value)
    head = _HEAD["<"].pack(
        ord("l"), message.kind, message.flags, 1, len(message.body), message.serial, len(fields)
    )
    return head + bytes(fields) + bytes(-len(fields) % 8)


def entry(name: str, signature: str, value: Any) -> Entry:
    """Marshal one entry of an `a{sv}`.

    Args:
        name: its key.
        signature: of the value; the usual ones take a microsecond, the others dbus-next's time.
        value: for `a{sv}` a mapping from names to b, x, s or as, see core.model.Value.
    """
    head = _text(name) + bytes((len(signature),)) + signature.encode() + b"\0"
    if signature == "s":
        return Entry(head + bytes(-len(head) % 4) + _text(value))
    if signature == "a{sv}":
        head += bytes(-len(head) % 4)
        inner = (entry(key, SIGNATURES[type(item)], item) for key, item in value.items())
        return Entry(head + _sized(inner, len(head)))
    if number := _NUMBERS.get(signature):
        return Entry(head + bytes(-len(head) % number.size) + number.pack(value))
    return Entry(marshal("a{sv}", [{name: variant(signature, value)}])[8:])


def variant(signature: str, value: Any) -> Variant:
    """Make a variant for `marshal`; values are as for `entry`."""
    match signature, value:
        case "a{sv}", Mapping():
            inner = {key: variant(SIGNATURES[type(item)], item) for key, item in value.items()}
            return Variant(signature, inner)
        case "as", _:
            return Variant(signature, list(value))
        case _:
            return Variant(signature, value)


def nest(key: str, entries: Iterable[Entry]) -> Entry:
    """Marshal a text or path, followed by a dictionary of entries.

    As an Entry it is one of an `a{sa{sv}}`; as a body it is an `sa{sv}` or an `oa{sa{sv}}`.
    """
    head = _text(key)
    return Entry(head + bytes(-len(head) % 4) + _sized(entries, len(head) + -len(head) % 4))


def array(entries: Iterable[Entry]) -> bytes:
    """Marshal a dictionary of entries as a whole body."""
    return _sized(entries, 0)


def changed(interface: str, entries: Iterable[Entry]) -> bytes:
    """Marshal the body of PropertiesChanged, `sa{sv}as`, with nothing invalidated."""
    body = nest(interface, entries)
    return body + bytes(-len(body) % 4) + bytes(4)


def plain(value: object) -> object:
    """Strip the variants from a value that was read."""
    match value:
        case Variant():
            return plain(value.value)
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case _:
            return value


def given(options: Mapping[str, Variant]) -> dict[str, tuple[str, object]]:
    """Turn an `a{sv}` that was read into signatures and values."""
    return {name: (one.signature, plain(one.value)) for name, one in options.items()}


class _Scrubbing(Marshaller):
    def write_string(self, value: str, _: Any = None) -> int:
        raw = value.encode(errors="replace").replace(b"\0", b"\xef\xbf\xbd")
        written: int = self.write_uint32(len(raw))
        self.buffer += raw + b"\0"
        return written + len(raw) + 1


def _order(mark: int) -> str:
    if mark not in _ORDERS:
        raise MalformedError(f"endianness {mark:#x}")
    return _ORDERS[mark]


def _padded(at: int, unit: int) -> int:
    return at + -at % unit


def _text(value: str) -> bytes:
    raw = value.encode(errors="replace").replace(b"\0", b"\xef\xbf\xbd")
    return _U32["<"].pack(len(raw)) + raw + b"\0"


def _sized(entries: Iterable[Entry], at: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    for one in entries:
        pad = -size % 8
        if pad:
            parts.append(bytes(pad))
        parts.append(one)
        size += pad + len(one)
    return b"".join([_U32["<"].pack(size), bytes(-(at + 4) % 8), *parts])


def _read_one(signature: str, head: bytes, at: int, order: str) -> tuple[Any, int]:
    reader = Unmarshaller(None)
    reader.buf, reader.offset = head, at
    reader.endian = ord("l") if order == "<" else ord("B")
    try:
        return reader.read_argument(SignatureTree._get(signature).types[0]), reader.offset
    except Exception as error:  # see read
        raise MalformedError(f"header field of type {signature!r}") from error
