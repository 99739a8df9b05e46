# SPDX-License-Identifier: LGPL-2.1-or-later
"""What comes in and is no message is refused; what goes out and is no text is made text."""

from collections.abc import Iterator
from typing import Any

import pytest
from dbus_next.signature import SignatureTree, Variant
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.bus import wire
from storaged_conn.bus.wire import Field, Kind, MalformedError, Message
from tests.bus.samples import anything, messages, theirs

# text


def scrubbed(text: str) -> str:
    return "".join("?" if "\ud800" <= one <= "\udfff" else one for one in text).replace(
        "\0", "\N{REPLACEMENT CHARACTER}"
    )


@given(anything, anything)
def test_any_text_leaves_as_text_without_nul(key: str, text: str) -> None:
    clean_key, clean = scrubbed(key), scrubbed(text)
    assert clean == text or not text.isprintable()
    assert wire.read("s", wire.marshal("s", [text])) == [clean]
    assert wire.read("as", wire.marshal("as", [[text]])) == [[clean]]
    assert wire.read("v", wire.marshal("v", [Variant("s", text)])) == [Variant("s", clean)]
    assert wire.read("a{ss}", wire.marshal("a{ss}", [{key: text}])) == [{clean_key: clean}]
    for signature, value, expected in (
        ("s", text, clean),
        ("as", (text,), [clean]),
        ("a{sv}", {key: text}, {clean_key: Variant("s", clean)}),
        ("a{sa{ss}}", {key: {key: text}}, {clean_key: {clean_key: clean}}),
    ):
        nested = wire.nest(key, [wire.entry(key, signature, value)])
        variant = {clean_key: Variant(signature, expected)}
        assert wire.read("sa{sv}", nested) == [clean_key, variant]


@given(anything)
def test_any_text_leaves_as_text_in_headers(text: str) -> None:
    raw = wire.header(Message(Kind.ERROR, 0, 1, {Field.ERROR_NAME: text, Field.REPLY_SERIAL: 1}))
    assert wire.parse(raw, b"").text(Field.ERROR_NAME) == scrubbed(text)


def test_dbus_next_would_let_nul_through_and_die_of_a_surrogate() -> None:
    assert theirs("s", "a\0b") == b"\3\0\0\0a\0b\0"
    with pytest.raises(UnicodeEncodeError):
        theirs("s", "\ud800")


# signatures without end


@pytest.fixture
def naive_cache(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    cache: dict[str, Any] = {}
    monkeypatch.setattr(SignatureTree, "_cache", cache)
    return cache


def endless_signatures() -> Iterator[bytes]:
    """10 000 variants, each of another type."""
    for number in range(10_000):
        name = "".join("yb"[number >> bit & 1] for bit in range(14)).encode()
        yield b"\x11a(" + name + b")\0" + bytes(8 + 8)


def test_signatures_are_not_kept_for_ever() -> None:
    for body in endless_signatures():
        wire.read("v", body)
    assert len(SignatureTree._cache) <= wire.CACHED_SIGNATURES
    wire.read("sa{sv}", bytes(5 + 7 + 8))


def test_dbus_next_would_keep_signatures_for_ever(naive_cache: dict[str, Any]) -> None:
    for body in endless_signatures():
        wire.read("v", body)
    assert len(naive_cache) > 10_000


# nonsense

tokens = st.text("ybnqiuxtdsoghav(){}", max_size=12)
likely = st.sampled_from(["v", "ssv", "a{sv}", "sta{sv}", "av", "ssa{sv}", "a{vs}", "{sv}", "(v)"])
bodies = st.binary(max_size=64) | st.lists(
    st.sampled_from([0, 0, 0, 0, 1, 2, 4, *b"ybsoghav(){}"]), max_size=64
).map(bytes)


@given(likely | tokens, bodies, st.sampled_from("<>"))
def test_a_malformed_body_is_malformed_and_nothing_else(
    signature: str, body: bytes, order: str
) -> None:
    try:
        values = wire.read(signature, body, order)
    except MalformedError:
        return
    assert len(values) == len(SignatureTree._get(signature).types)


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("v", b"\4{sy}\0\0\0\1\0\0\0a\0\5"),  # an entry outside of a dictionary
        ("a{vs}", b"\x0e\0\0\0\0\0\0\0\1y\0\5\1\0\0\0a\0\0\0"),  # a key that is no basic type
        ("v", b"\2yy\0\1\2"),  # two types in one variant
        ("v", b"\0\0"),
        ("v", b"\1v\0" * 5000),  # deeper than the stack
        ("s", b"\1\0\0\0\xff\0"),
        ("s", b"\xff\xff\xff\xff"),
        ("as", b"\xff\xff\xff\xff"),
        ("z", b""),
        ("a", b""),
        ("é" * 256, b""),
        ("v", b"\1o\0\0\1\0\0\0x\0"),  # no object path
    ],
)
def test_what_dbus_next_trips_over_is_malformed(signature: str, body: bytes) -> None:
    with pytest.raises(MalformedError):
        wire.read(signature, body)


@st.composite
def damaged_heads(draw: st.DrawFn) -> bytes:
    head = bytearray(wire.header(draw(messages())))
    places = st.integers(wire.FIXED, len(head) - 1)
    for place, byte in draw(st.dictionaries(places, st.integers(0, 255), max_size=4)).items():
        head[place] = byte
    return bytes(head[: draw(st.just(len(head)) | st.integers(wire.FIXED, len(head)))])


@given(damaged_heads() | st.binary(min_size=wire.FIXED, max_size=200))
def test_a_malformed_header_is_malformed_and_nothing_else(head: bytes) -> None:
    try:
        read = wire.parse(head, b"")
    except MalformedError:
        return
    assert isinstance(read.text(Field.PATH), str)
    assert isinstance(read.reply_to, int)


@given(st.binary(max_size=20), st.binary(min_size=wire.FIXED, max_size=wire.FIXED))
def test_the_size_of_nonsense_is_malformed_or_positive(before: bytes, head: bytes) -> None:
    try:
        start, total = wire.message_size(before + head, len(before))
    except MalformedError:
        return
    assert total >= start >= wire.FIXED
    assert start % 8 == 0


@pytest.mark.parametrize("head", [b"l\1\0\2" + bytes(12), b"x\1\0\1" + bytes(12), bytes(16)])
def test_another_protocol_has_no_size(head: bytes) -> None:
    with pytest.raises(MalformedError):
        wire.message_size(head, 0)
