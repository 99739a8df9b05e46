# SPDX-License-Identifier: LGPL-2.1-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.core.secret import Secret
from storaged_conn.errors import AuthenticationError, ProtocolError
from storaged_conn.system import iscsi_pdu as pdu
from storaged_conn.system.iscsi_pdu import Chap, Login

SECRET = Secret(b"a secret of 14")
LOGIN = Login("iqn.1993-08.org.debian:01:abc", "iqn.2003-01.org:a", "me", SECRET)


def test_a_header_has_each_thing_in_its_place() -> None:
    written = pdu.write(0x43, 0x87, b"abcde", isid=b"123456\0\1", numbers=bytes(range(16)))
    assert written == (
        b"\x43\x87\0\0\0\0\0\x05123456\0\1" + bytes(range(16)) + bytes(16) + b"abcde\0\0\0"
    )


def test_an_answer_is_read() -> None:
    header = bytearray(48)
    header[0], header[1], header[7], header[15], header[19] = 0x23, 0xC7, 5, 9, 1
    header[20:28] = b"\0\0\0\x07\0\0\0\x64"
    header[36:38] = b"\2\1"
    answer = pdu.read(bytes(header))
    assert answer == (0x23, 0xC7, 5, 9, 1, 7, 100, (2, 1))
    assert answer.moves_on
    assert answer.continues


@given(st.binary(min_size=48, max_size=48))
def test_any_header_is_read(header: bytes) -> None:
    assert pdu.read(header).size <= 0xFFFFFF + 4 * 255


@given(st.binary())
def test_any_text_is_read(data: bytes) -> None:
    assert all(key for key, _ in pdu.pairs(data))


@given(st.text())
def test_any_value_is_binary_or_nothing(value: str) -> None:
    assert len(pdu.binary(value)) <= pdu.MAX_CHALLENGE


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("0x616263", b"abc"),
        ("0X0a", b"\n"),
        ("0xa", b"\n"),
        ("0bYWJj", b"abc"),
        ("abc", b""),
        ("0xzz", b""),
        ("0b*", b""),
        ("", b""),
        ("0x" + "00" * 1025, b""),
    ],
)
def test_a_binary_value_is_read(value: str, found: bytes) -> None:
    assert pdu.binary(value) == found


RESPONSES = {
    "md5": "8bad0bc40634c7f0d66a74942e0be15b",
    "sha1": "6592081a501f8c375de26e06cb1f6fd6cd3a3c9d",
    "sha256": "7d7b4c80ced9f7bf7db865aad6ef5138207a6ace7aff4320d1c6087309f87019",
    "sha3_256": "ebb1fae41b919038aff89f46bfb73b4d89e1db9da9ff1b8d9b11911c6d8db226",
}
"""Of `printf '\\007a secret of 14challenge'`, by md5sum(1), sha1sum(1) and openssl(1)."""


@pytest.mark.parametrize(("algorithm", "response"), RESPONSES.items())
def test_a_response_is_the_digest_of_number_secret_and_challenge(
    algorithm: str, response: str
) -> None:
    assert pdu.respond(algorithm, 7, SECRET, b"challenge").hex() == response


ASKED = {"CHAP_A": "5", "CHAP_I": "7", "CHAP_C": "0x0102"}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        ASKED | {"CHAP_A": "7"},
        ASKED | {"CHAP_I": "x"},
        ASKED | {"CHAP_C": "x"},
        {"CHAP_A": "5"},
    ],
)
def test_what_is_no_challenge_is_not_answered(asked: dict[str, str]) -> None:
    with pytest.raises(ProtocolError):
        Chap(LOGIN, 1, b"x").answer(asked)


def test_without_a_password_nothing_is_answered() -> None:
    with pytest.raises(AuthenticationError):
        Chap(LOGIN._replace(password=None), 1, b"x").answer(ASKED)


@pytest.mark.parametrize(
    ("names", "offered"),
    [("MD5", "5"), ("SHA3-256, SHA256,SHA1,MD5", "8,7,6,5"), ("MD5,NONESUCH", "5")],
)
def test_the_algorithms_of_iscsid_conf_are_offered(names: str, offered: str) -> None:
    chap = Chap(LOGIN._replace(algorithms=names), 1, b"x")
    assert chap.offer() == {"CHAP_A": offered}
    for number in offered.split(","):
        assert chap.answer(ASKED | {"CHAP_A": number})["CHAP_N"] == "me"


def test_a_login_shows_no_secret() -> None:
    assert "secret of" not in repr(LOGIN)
