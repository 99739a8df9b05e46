# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages and values of every kind, and both ways to read and write them."""

from io import BytesIO
from typing import Any

from dbus_next import Message as Theirs
from dbus_next._private.marshaller import Marshaller
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.signature import Variant
from hypothesis import strategies as st

from storaged_conn.bus import wire
from storaged_conn.bus.wire import Field, Kind, Message
from storaged_conn.core.model import SIGNATURES

FIELD_NAMES: dict[int, str] = {
    Field.PATH: "path",
    Field.INTERFACE: "interface",
    Field.MEMBER: "member",
    Field.ERROR_NAME: "error_name",
    Field.REPLY_SERIAL: "reply_serial",
    Field.DESTINATION: "destination",
    Field.SIGNATURE: "signature",
}

word = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,40}", fullmatch=True)
dotted = st.lists(word, min_size=2, max_size=4).map(".".join)
paths = st.lists(word, max_size=4).map(lambda parts: "/" + "/".join(parts))
serials = st.integers(1, 2**32 - 1)
texts = st.text(max_size=30).filter(lambda text: "\0" not in text)
anything = st.text(st.characters() | st.sampled_from("\0\ud800\udfff"), max_size=30)

integers = {"i": (31, True), "u": (32, False), "x": (63, True), "t": (64, False)}
numbers = {
    signature: st.integers(-(2**bits) if signed else 0, 2**bits - 1)
    for signature, (bits, signed) in integers.items()
}
plain_values = st.booleans() | numbers["x"] | texts | st.lists(texts, max_size=4).map(tuple)
by_signature: dict[str, st.SearchStrategy[Any]] = {
    **numbers,
    "b": st.booleans(),
    "s": texts,
    "as": st.lists(texts, max_size=4).map(tuple),
    "a{sv}": st.dictionaries(texts, plain_values, max_size=4),
    "a{sa{ss}}": st.dictionaries(texts, st.dictionaries(texts, texts, max_size=3), max_size=3),
}
properties = st.dictionaries(
    texts,
    st.sampled_from(sorted(by_signature)).flatmap(
        lambda signature: st.tuples(st.just(signature), by_signature[signature])
    ),
    max_size=6,
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(Kind))
    wanted = {
        Kind.CALL: (Field.PATH, Field.INTERFACE, Field.MEMBER),
        Kind.SIGNAL: (Field.PATH, Field.INTERFACE, Field.MEMBER),
        Kind.RETURN: (Field.REPLY_SERIAL,),
        Kind.ERROR: (Field.ERROR_NAME, Field.REPLY_SERIAL),
    }[kind]
    strategies = {Field.PATH: paths, Field.MEMBER: word, Field.REPLY_SERIAL: serials}
    fields: dict[int, Any] = {name: draw(strategies.get(name, dotted)) for name in wanted}
    if draw(st.booleans()):
        fields[Field.DESTINATION] = draw(dotted)
    body = b""
    if draw(st.booleans()):
        fields[Field.SIGNATURE] = "a{sv}s"
        values = {name: variant(*one) for name, one in draw(properties).items()}
        body = wire.marshal("a{sv}s", (values, draw(texts)))
    flags = draw(st.integers(0, 7))
    return Message(kind, flags, draw(serials), fields, body)


def variant(signature: str, value: Any) -> Any:
    """Make a Variant as dbus-next wants it, from a value as ours is."""
    match value:
        case dict() if signature == "a{sv}":
            inner = {key: variant(SIGNATURES[type(one)], one) for key, one in value.items()}
            return Variant(signature, inner)
        case tuple():
            return Variant(signature, list(value))
        case _:
            return Variant(signature, value)


def theirs(signature: str, *body: object) -> bytes:
    return bytes(Marshaller(signature, list(body)).marshall())


def parsed_by_them(raw: bytes) -> Any:
    message = Unmarshaller(BytesIO(raw)).unmarshall()
    assert isinstance(message, Theirs)
    return message


def parsed_by_us(raw: bytes) -> Message:
    start, total = wire.message_size(raw, 0)
    assert total == len(raw)
    return wire.parse(raw[:start], raw[start:])
