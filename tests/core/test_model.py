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
    read_host,
    read_options,
    written,
)
from storaged_conn.core.secret import MAX_SECRET_BYTES, Secret
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
        ("file:///\ud800", "no UTF-8"),
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


SECRETS = {"password": "ay"}


@pytest.mark.parametrize("value", [b"x", b"hunter2", b"\0\xff\n", b"x" * MAX_SECRET_BYTES])
def test_bytes_become_a_secret_where_one_is_wanted(value: bytes) -> None:
    secret = read_options({"password": ("ay", value)}, SECRETS, "iscsi")["password"]
    assert isinstance(secret, Secret)
    assert secret.reveal() == value


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("s", "hunter2"), "is a secret; give its bytes as ay, not s"),
        (("as", ["hunter2"]), "is a secret; give its bytes as ay, not as"),
        (("v", "hunter2"), "is a secret; give its bytes as ay, not v"),
        (("an", [104, 117]), "is a secret; give its bytes as ay, not an"),
        (("x", 1), "is a secret; give its bytes as ay, not x"),
        (("ay", b""), "is empty; leave it out, or give the secret"),
        (("ay", b"hunter2" * 600), "is longer than 4096 bytes"),
    ],
)
def test_a_bad_secret_is_refused_by_name_and_never_repeated(given: Given, words: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_options({"password": given}, SECRETS, "iscsi")
    assert str(caught.value) == f"options: 'password' {words}"


@pytest.mark.parametrize(
    "given",
    [("s", "hunter2"), ("ay", b"hunter2"), ("as", ["hunter2"]), ("a{ss}", {"a": "hunter2"})],
)
@pytest.mark.parametrize("name", ["passwort", "size", "read-only", "mountpoint"])
def test_a_value_is_never_repeated_wherever_it_was_put(name: str, given: Given) -> None:
    known = KNOWN | {"mountpoint": "x", "mount-options": "b"}
    with pytest.raises(InvalidArgumentError, match=name) as caught:
        read_options({name: given}, known, "file")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["password=hunter2", "hunter2 ", "hunter2\n", "hünter", "x" * 65])
def test_what_cannot_be_a_name_is_not_repeated(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_options({name: ("b", True)}, SECRETS, "iscsi")
    message = "options: a name that is given is unknown to iscsi; it knows password"
    assert str(caught.value) == message


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


def test_two_ids_share_a_connection_also_with_different_secrets() -> None:
    one, other = (Target("iscsi://h/i", (), (("password", Secret(x)),)) for x in (b"a", b"b"))
    assert one == other
    assert len({one, other, Target("iscsi://h/i")}) == 1
    assert (one.secret("password"), other.secret("password")) == (Secret(b"a"), Secret(b"b"))
    assert one.secret("password-in") is None


def test_a_record_is_persistent_if_nothing_else_is_asked() -> None:
    assert Record("a", "file:///a") == Record("a", "file:///a", {}, 0, Lifetime.PERSISTENT, "")
    assert Lifetime("caller") is Lifetime.CALLER


def test_a_record_tells_its_secrets_from_what_may_be_shown() -> None:
    record = Record("c", "file:///srv", {"n": 1, "password": Secret(b"x"), "flags": ("a",)})
    assert record.shown == {"n": 1, "flags": ("a",)}
    assert record.secrets == {"password": Secret(b"x")}


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("nfs://server/export", "server"),
        ("nfs://server:2049/export", "server"),
        ("nfs://server:/export", "server"),
        ("nfs://server:export", "server"),
        ("iscsi://[2001:db8::1]:3260/iqn", "2001:db8::1"),
        ("file:///srv", ""),
        ("posix+ext4:/dev/sda", ""),
        ("", ""),
    ],
)
def test_the_host_of_a_uri(uri: str, host: str) -> None:
    assert read_host(uri) == host


def test_options_are_written_as_they_are_read() -> None:
    known = {"size": "x", "read-only": "b", "options": "as", "password": "ay"}
    given = {
        "size": ("x", 1),
        "read-only": ("b", True),
        "options": ("as", ["a"]),
        "password": ("ay", b"x"),
    }
    assert written(read_options(given, known, "x")) == given
