# SPDX-License-Identifier: LGPL-2.1-or-later
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.core.model import Target, Value
from storaged_conn.core.secret import Secret
from storaged_conn.drivers.iscsi_options import (
    DIGESTS,
    LIMITS,
    OPTIONS,
    Remote,
    read_options,
    read_portal,
    read_uri,
)
from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.sentinel import Address

IQN = "iqn.2003-01.org.example:disk"

CANONICAL = {
    f"iscsi://host/{IQN}": f"iscsi://host/{IQN}",
    f"iscsi://HOST:3260/{IQN}": f"iscsi://host/{IQN}",
    f"iscsi://host:860/{IQN}": f"iscsi://host:860/{IQN}",
    f"iscsi://[FD09::0:2]/{IQN}": f"iscsi://[fd09::2]/{IQN}",
    f"iscsi://h/{IQN};lun=01;portal=2": f"iscsi://h/{IQN};portal=2;lun=1",
    f"iscsi://h/{IQN.replace(':', '%3A')}": f"iscsi://h/{IQN}",
    "iscsi://h/eui.02004567A425678D": "iscsi://h/eui.02004567A425678D",
    "iscsi://h/naa.52004567BA64678D": "iscsi://h/naa.52004567BA64678D",
    "iscsi://h/iqn.1992-08.com.Example:SN.Ab_1": "iscsi://h/iqn.1992-08.com.Example:SN.Ab_1",
}


@pytest.mark.parametrize(("uri", "canonical"), CANONICAL.items())
def test_a_target_is_the_same_in_every_spelling(uri: str, canonical: str) -> None:
    assert read_uri(uri).uri == canonical
    assert read_uri(canonical).uri == canonical


def test_a_uri_is_read() -> None:
    remote = read_uri(f"iscsi://host:860/{IQN};portal=7;lun=3")
    assert remote == Remote(Address("host", 860), IQN, 7, 3)
    assert remote.session_uri == f"iscsi://host:860/{IQN};portal=7"


BAD = [
    "iscsi:x", "iscsi://host", "iscsi://host/", "iscsi:///x", f"iscsi://host:0/{IQN}",
    "iscsi://host/disk", "iscsi://host/iqn.2003.org:a", "iscsi://host/../x", "iscsi://h/iqn.2003-01.a:/b",
    f"iscsi://host/{IQN}/x", f"iscsi://host/{IQN}%20x", f"iscsi://host/{IQN}%0Anode.x=1",
    f"iscsi://host/{IQN}ä", f"iscsi://host/{IQN};lun", f"iscsi://host/{IQN};lun=x",
    f"iscsi://host/{IQN};lun=1;lun=1", f"iscsi://host/{IQN};portal=65536", f"iscsi://h/{IQN};lun=16384",
    f"iscsi://host/{IQN};x=1", f"iscsi://host/{IQN};", f"iscsi://host/{IQN}{'x' * 223}",
    f"iscsi://-x/{IQN}", f"iscsi://a,b/{IQN}", f"iscsi://host/{IQN}?x", "iscsi://host/-Tx",
]  # fmt: skip


@pytest.mark.parametrize("uri", BAD)
def test_what_is_no_target_is_refused_by_name(uri: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^uri:"):
        read_uri(uri)


@given(st.text())
def test_any_text_is_a_target_or_refused(text: str) -> None:
    uri = f"iscsi://host/{text}"
    try:
        remote = read_uri(uri)
    except InvalidArgumentError:
        return
    assert read_uri(remote.uri) == remote
    assert not set(remote.iqn) & set("/\\ \n;,'\"$`")


def test_a_portal_is_read() -> None:
    assert read_portal("iscsi://Host") == Address("host", 3260)
    assert read_portal("iscsi://[fd09::2]:860/") == Address("fd09::2", 860)
    for bad in ("iscsi:host", f"iscsi://host/{IQN}", "iscsi://"):
        with pytest.raises(InvalidArgumentError):
            read_portal(bad)


GOOD: dict[str, Value] = {
    "username": "me",
    "password": Secret(b"a b=#c"),
    "username-in": "it",
    "password-in": Secret("ä".encode()),
    "interface": "eth0.7:1",
    "header-digest": "crc32c",
    "replacement-timeout": 0,
    "login-timeout": 300,
    "luns": ("10", "2", "02"),
    "force": True,
}


def test_all_options_are_taken() -> None:
    assert GOOD.keys() == OPTIONS.keys()
    assert read_options(GOOD) == GOOD | {"luns": ("2", "10")}


def test_what_is_the_default_makes_no_other_connection() -> None:
    defaults: dict[str, Value] = {
        "interface": "default", "header-digest": "none", "luns": (), "force": False,
    }  # fmt: skip
    assert read_options(defaults) == {}


def bad_options() -> Iterator[dict[str, Value]]:
    account: dict[str, Value] = {"username": "me", "password": Secret(b"x")}
    yield {"password": Secret(b"x")}
    yield {"password-in": Secret(b"x")}
    yield account | {"username-in": "it"}
    yield {"header-digest": "md5"}
    for name in ("", " x", "x ", "a\nb", "x" * 224):
        yield account | {"username": name}
    for secret in (b" x", b"a\nb", b"a\0b", b"\xff", b"x" * 224):
        yield account | {"password": Secret(secret)}
        yield account | {"password-in": Secret(secret)}
    for interface in ("", ".", "../x", "-x", "a b", "x" * 65):
        yield {"interface": interface}
    for name, (least, most) in LIMITS.items():
        yield {name: least - 1}
        yield {name: most + 1}
    for lun in ("", "x", "-1", "16384", "1;2"):
        yield {"luns": (lun,)}


@pytest.mark.parametrize("options", list(bad_options()), ids=str)
def test_a_bad_option_is_refused_by_name(options: dict[str, Value]) -> None:
    with pytest.raises(InvalidArgumentError, match="options: '") as caught:
        read_options(options)
    for value in options.values():
        if isinstance(value, Secret) and len(value.reveal()) > 2:
            assert value.reveal().decode(errors="replace") not in str(caught.value)


def test_a_name_without_its_password_is_kept_for_what_is_ending() -> None:
    assert read_options({"username": "me"}) == {"username": "me"}


def test_the_digests_are_those_of_the_protocol() -> None:
    assert set(DIGESTS.values()) == {"None", "CRC32C"}
    assert Target("iscsi://h/x").scheme == "iscsi"
