# SPDX-License-Identifier: LGPL-2.1-or-later
"""What callers give is refused or becomes a value; nothing passes silently."""

import re

import pytest

from storaged_conn.core.model import (
    Given,
    Lifetime,
    Record,
    Target,
    Value,
    check_cid,
    check_uri,
    read_options,
)
from storaged_conn.errors import InvalidArgumentError

KNOWN = {"size": "x", "read-only": "b", "mountpoint": "s", "mount-options": "as"}


@pytest.mark.parametrize("cid", ["a", "a" * 255, "é" * 127, "1st nas.example é", "..", "_", "\n"])
def test_any_string_of_1_to_255_bytes_is_a_connection_id(cid: str) -> None:
    check_cid(cid)


@pytest.mark.parametrize(
    ("cid", "message"),
    [
        ("", "is empty"),
        ("a" * 256, "longer than 255 bytes"),
        ("é" * 128, "longer than 255 bytes"),
        ("a/b", "contains '/'"),
        ("/", "contains '/'"),
    ],
)
def test_a_bad_connection_id_is_refused_by_name(cid: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^connection_id .*{message}"):
        check_cid(cid)


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("file:///srv/é", "file"),
        ("FILE:///srv", "file"),
        ("posix+ext4:/dev/sda1", "posix+ext4"),
        ("nfs://host:/export@home", "nfs"),
        ("file:///srv/a@b", "file"),
        ("iscsi://[fe80::1]:3260/iqn.2003-01.org:a;portal=1", "iscsi"),
        ("x:" + "a" * 4094, "x"),
    ],
)
def test_a_uri_has_a_scheme(uri: str, scheme: str) -> None:
    assert check_uri(uri) == scheme


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "no scheme"),
        ("/srv", "no scheme"),
        (":rest", "no scheme"),
        ("file:", "no scheme"),
        ("x:" + "a" * 4095, "longer than 4096 bytes"),
        ("x:" + "é" * 2048, "longer than 4096 bytes"),
        ("file:///a\nb", "unprintable"),
        ("file:///a\x00b", "unprintable"),
        ("smb://user@host/share", "user or password"),
        ("smb://user:secret@host/share", "user or password"),
        ("smb://user:secret@host", "user or password"),
    ],
)
def test_a_bad_uri_is_refused_by_name_and_never_repeated(uri: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^uri .*{message}") as caught:
        check_uri(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("mountpoint", ("s", ""), ""),
        ("read-only", ("b", True), True),
        ("read-only", ("b", False), False),
        ("mount-options", ("as", []), ()),
        ("mount-options", ("as", ["noatime", "x=1"]), ("noatime", "x=1")),
        ("size", ("y", 255), 255),
        ("size", ("n", -1), -1),
        ("size", ("q", 1), 1),
        ("size", ("i", -(2**31)), -(2**31)),
        ("size", ("u", 2**32 - 1), 2**32 - 1),
        ("size", ("x", -(2**63)), -(2**63)),
        ("size", ("x", 2**63 - 1), 2**63 - 1),
        ("size", ("t", 2**63 - 1), 2**63 - 1),
    ],
)
def test_an_option_of_the_right_type_becomes_a_value(name: str, given: Given, value: Value) -> None:
    options = read_options({name: given}, KNOWN, "file")
    assert options == {name: value}
    assert type(options[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("size", ("b", True)),
        ("size", ("d", 1.0)),
        ("size", ("s", "1")),
        ("size", ("t", 2**63)),
        ("read-only", ("i", 1)),
        ("read-only", ("s", "true")),
        ("mountpoint", ("o", "/a")),
        ("mountpoint", ("ay", b"/a")),
        ("mount-options", ("s", "noatime")),
        ("mount-options", ("ao", ["/a"])),
        ("mount-options", ("av", ["noatime"])),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_by_name(name: str, given: Given) -> None:
    message = f"options: '{name}' must be of type {KNOWN[name]}, not {given[0]}"
    with pytest.raises(InvalidArgumentError, match=f"^{re.escape(message)}$"):
        read_options({name: given}, KNOWN, "file")


def test_an_unknown_option_is_refused_and_the_known_ones_are_named() -> None:
    message = (
        "options: 'readonly' is unknown to file; "
        "it knows mount-options, mountpoint, read-only, size"
    )
    with pytest.raises(InvalidArgumentError, match=f"^{message}$"):
        read_options({"size": ("x", 1), "readonly": ("b", True)}, KNOWN, "file")


def test_at_most_64_options_are_taken() -> None:
    known = {f"name{number}": "b" for number in range(65)}
    given: dict[str, Given] = dict.fromkeys(list(known)[:64], ("b", True))
    assert len(read_options(given, known, "file")) == 64
    with pytest.raises(InvalidArgumentError, match=r"^options: more than 64 are given$"):
        read_options({**given, "name64": ("b", True)}, known, "file")


def test_a_target_knows_its_scheme_and_its_options() -> None:
    target = Target("posix+ext4:/dev/sda1", (("mountpoint", "/mnt"), ("read-only", True)))
    assert target.scheme == "posix+ext4"
    assert target.option("mountpoint") == "/mnt"
    assert target.option("read-only") is True
    assert target.option("size") is None


def test_two_ids_share_a_connection_where_their_targets_are_equal() -> None:
    one, same = (Target("file:///a", (("read-only", True),)) for _ in range(2))
    assert one == same
    assert len({one, same, Target("file:///a"), Target("file:///b")}) == 3


def test_a_record_is_persistent_if_nothing_else_is_asked() -> None:
    assert Record("a", "file:///a") == Record("a", "file:///a", {}, 0, Lifetime.PERSISTENT, "")
    assert Lifetime("caller") is Lifetime.CALLER
