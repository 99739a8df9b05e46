# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is written by hand is what dbus-next writes, where dbus-next is right."""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dbus_next import Message as Theirs
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.signature import Variant
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.bus import wire
from storaged_conn.bus.wire import Field, Flag, Kind, Message
from storaged_conn.core.secret import Secret
from tests.bus.samples import (
    FIELD_NAMES,
    messages,
    parsed_by_them,
    parsed_by_us,
    paths,
    properties,
    texts,
    theirs,
    variant,
    word,
)

# headers


@given(messages())
def test_dbus_next_reads_our_headers(message: Message) -> None:
    read = parsed_by_them(wire.header(message) + message.body)
    assert read.message_type.value == message.kind
    assert read.flags.value == message.flags
    assert read.serial == message.serial
    fields = {key: getattr(read, name) or None for key, name in FIELD_NAMES.items()}
    assert fields == dict.fromkeys(FIELD_NAMES) | message.fields
    assert read.body == (message.arguments() if message.body else [])


@given(messages())
def test_we_read_our_headers(message: Message) -> None:
    assert parsed_by_us(wire.header(message) + message.body) == message


@given(messages(), texts)
def test_we_read_messages_of_dbus_next(ours: Message, text: str) -> None:
    made = Theirs(
        message_type=MessageType(ours.kind),
        flags=MessageFlag(ours.flags),
        serial=ours.serial,
        signature="sa{sv}",
        body=[text, {"x": Variant("as", [text])}],
        **{FIELD_NAMES[key]: one for key, one in ours.fields.items() if key != Field.SIGNATURE},
    )
    read = parsed_by_us(bytes(made._marshall()))
    fields = ours.fields | {Field.SIGNATURE: "sa{sv}"}
    assert (read.kind, read.flags, read.serial) == (ours.kind, ours.flags, ours.serial)
    assert read.fields == fields
    assert read.arguments() == made.body


def big_endian(fields: dict[int, tuple[str, Any]], body: bytes) -> bytes:
    """Write a call as a big-endian machine does."""
    out = bytearray()
    for code, (signature, value) in fields.items():
        out += bytes(-len(out) % 8)
        out += bytes((code, 1, ord(signature), 0))
        if signature == "g":
            out += bytes((len(value),)) + value.encode() + b"\0"
        elif signature == "u":
            out += struct.pack(">I", value)
        else:
            out += struct.pack(">I", len(value)) + value.encode() + b"\0"
    head = struct.pack(
        ">BBBBIII", ord("B"), Kind.CALL, Flag.NO_AUTO_START, 1, len(body), 7, len(out)
    )
    return head + bytes(out) + bytes(-len(out) % 8) + body


@given(paths, word, texts, st.integers(0, 2**64 - 1))
def test_big_endian_messages_are_read_as_dbus_next_reads_them(
    path: str, member: str, text: str, number: int
) -> None:
    body = struct.pack(">I", len(text.encode())) + text.encode() + b"\0"
    body += bytes(-len(body) % 8) + struct.pack(">Q", number)
    fields: dict[int, tuple[str, Any]] = {
        Field.PATH: ("o", path),
        Field.MEMBER: ("s", member),
        Field.REPLY_SERIAL: ("u", 258),
        Field.SIGNATURE: ("g", "st"),
    }
    raw = big_endian(fields, body)
    read, reference = parsed_by_us(raw), parsed_by_them(raw)
    assert read.fields == {key: value for key, (_, value) in fields.items()}
    assert (read.reply_to, read.serial) == (reference.reply_serial, reference.serial) == (258, 7)
    assert read.arguments() == reference.body == [text, number]


unknown_values = st.sampled_from(
    [
        *(("y", 255), ("b", True), ("n", -1), ("q", 1), ("i", -1), ("u", 2**32 - 1), ("x", -1)),
        *(("t", 1), ("d", 0.5), ("s", "text"), ("o", "/"), ("g", "a{sv}"), ("h", 0), ("as", [])),
        *(
            ("ay", b"bytes"),
            ("(ybt)", [1, True, 3]),
            ("a{sv}", {"a": Variant("v", Variant("y", 1))}),
        ),
        *(("v", Variant("a(ss)", [["a", "b"]])), ("aat", [[1], [], [2, 3]])),
    ]
)


@given(st.lists(st.tuples(st.integers(10, 255), unknown_values), max_size=5), st.randoms())
def test_unknown_header_fields_of_any_type_are_skipped(
    unknown: list[tuple[int, tuple[str, Any]]], order: Any
) -> None:
    known = [(Field.PATH, ("o", "/a")), (Field.MEMBER, ("s", "C")), (Field.SENDER, ("s", ":1.7"))]
    fields = [*known, *unknown]
    order.shuffle(fields)
    raw = theirs(
        "yyyyuua(yv)",
        *(ord("l"), Kind.CALL, 0, 1, 0, 9),
        [[code, Variant(signature, value)] for code, (signature, value) in fields],
    )
    read = parsed_by_us(raw + bytes(-len(raw) % 8))
    assert {key: read.text(key) for key, _ in known} == {key: one for key, (_, one) in known}
    assert read.text(Field.INTERFACE) == ""
    assert read.reply_to == 0


def test_dbus_next_would_die_of_an_unknown_header_field() -> None:
    raw = theirs("yyyyuua(yv)", ord("l"), 1, 0, 1, 0, 9, [[10, Variant("s", "")]])
    with pytest.raises(ValueError, match="10 is not a valid HeaderField"):
        parsed_by_them(raw + bytes(-len(raw) % 8))


def test_a_known_field_of_the_wrong_type_is_as_good_as_missing() -> None:
    fields = [[Field.PATH, Variant("u", 1)], [Field.REPLY_SERIAL, Variant("s", "1")]]
    raw = theirs("yyyyuua(yv)", ord("l"), 1, 0, 1, 0, 9, fields)
    read = parsed_by_us(raw + bytes(-len(raw) % 8))
    assert (read.text(Field.PATH), read.reply_to) == ("", 0)


# fragments


def entries(described: dict[str, tuple[str, Any]]) -> Iterator[wire.Entry]:
    return (wire.entry(name, *one) for name, one in described.items())


def variants(described: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    return {name: variant(*one) for name, one in described.items()}


@given(properties)
def test_an_array_of_entries_is_what_dbus_next_marshals(described: Any) -> None:
    assert wire.array(entries(described)) == theirs("a{sv}", variants(described))


@given(texts, properties)
def test_changed_is_what_dbus_next_marshals(interface: str, described: Any) -> None:
    expected = theirs("sa{sv}as", interface, variants(described), [])
    assert wire.changed(interface, entries(described)) == expected


@given(paths, texts, properties)
def test_a_nested_body_is_what_dbus_next_marshals(path: str, name: str, described: Any) -> None:
    inner = wire.nest(name, entries(described))
    assert inner == theirs("sa{sv}", name, variants(described))
    assert wire.nest(path, [inner]) == theirs("oa{sa{sv}}", path, {name: variants(described)})


@given(st.dictionaries(paths, properties, max_size=2), word)
def test_a_joined_listing_is_what_dbus_next_marshals(objects: Any, name: str) -> None:
    parts = (wire.nest(path, [wire.nest(name, entries(one))]) for path, one in objects.items())
    expected = {path: {name: variants(one)} for path, one in objects.items()}
    assert wire.array(parts) == theirs("a{oa{sa{sv}}}", expected)
    listed = (wire.nest(path, entries(one)) for path, one in objects.items())
    expected = {path: variants(one) for path, one in objects.items()}
    assert wire.array(listed) == theirs("a{sa{sv}}", expected)


@given(properties)
def test_what_was_marshalled_is_read_back(described: Any) -> None:
    (read,) = wire.read("a{sv}", wire.array(entries(described)))
    assert read == variants(described)
    plain = {name: (one.signature, wire.plain(one)) for name, one in variants(described).items()}
    assert wire.given(read) == plain


@pytest.mark.parametrize("write", [wire.variant, lambda *one: wire.entry("ConnectionInfo", *one)])
def test_a_secret_never_goes_out(write: Callable[[str, object], object]) -> None:
    with pytest.raises(KeyError) as caught:
        write("a{sv}", {"password": Secret(b"hunter2")})
    assert "hunter2" not in repr(caught.value)


def test_what_a_message_says_is_not_in_its_repr() -> None:
    assert "hunter2" not in repr(Message(Kind.CALL, body=b"hunter2"))
