# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes over the wire in the login phase of iSCSI, and the answers to CHAP. Pure.

Source: RFC 7143 sections 11 (PDUs), 6 and 13 (keys), 12.1.3 (CHAP); RFC 1994.
"""

import hashlib
from base64 import b64decode
from collections.abc import Iterable, Mapping
from hmac import compare_digest
from typing import Final, NamedTuple

from storaged_conn.core.secret import Secret
from storaged_conn.errors import AuthenticationError, ProtocolError

HEADER: Final = 48

LOGIN, TEXT, LOGOUT = 0x03, 0x04, 0x06
LOGIN_ANSWER, TEXT_ANSWER, LOGOUT_ANSWER = 0x23, 0x24, 0x26
NOP_IN, ASYNC = 0x20, 0x32
IMMEDIATE: Final = 0x40
FINAL: Final = 0x80
CONTINUES: Final = 0x40
SECURITY, OPERATIONAL, FULL_FEATURE = 0, 1, 3

RANDOM_ISID: Final = 0x80
"""Its first byte: the others are random. It must not be that of a session of the kernel's, which
the target would end. Source: RFC 7143 section 11.12.5."""

ALGORITHMS: Final[Mapping[str, tuple[str, str]]] = {
    "MD5": ("5", "md5"),
    "SHA1": ("6", "sha1"),
    "SHA256": ("7", "sha256"),
    "SHA3-256": ("8", "sha3_256"),
}
"""By their names in iscsid.conf, node.session.auth.chap_algs; their numbers and names here. Source:
IANA, PPP Authentication Algorithms. By default iscsid offers MD5 alone, and with reason: tgtd means
SHA1 by 7."""

MAX_CHALLENGE: Final = 1024
"""Bytes. Source: RFC 7143 section 12.1.3."""


class Answer(NamedTuple):
    """The header of what a target says."""

    kind: int
    flags: int
    size: int
    session: int
    tag: int
    target_tag: int
    serial: int
    status: tuple[int, int]

    @property
    def moves_on(self) -> bool:
        """Whether the target goes to the next stage."""
        return bool(self.flags & FINAL)

    @property
    def continues(self) -> bool:
        """Whether the text goes on in the next PDU."""
        return bool(self.flags & CONTINUES)


def read(header: bytes) -> Answer:
    """Read a header."""
    return Answer(
        header[0] & 0x3F,
        header[1],
        int.from_bytes(header[5:8]) + 4 * header[4],
        int.from_bytes(header[14:16]),
        int.from_bytes(header[16:20]),
        int.from_bytes(header[20:24]),
        int.from_bytes(header[24:28]),
        (header[36], header[37]),
    )


def write(kind: int, flags: int, data: bytes, *, isid: bytes = b"", numbers: bytes = b"") -> bytes:
    """Write a PDU of the initiator.

    Args:
        kind: its opcode.
        flags: the second byte.
        data: padded here.
        isid: and what follows it, up to the task tag: 8 bytes.
        numbers: the bytes from the task tag on, up to 16.
    """
    header = bytes([kind, flags, 0, 0]) + len(data).to_bytes(4)
    header += isid.ljust(8, b"\0") + numbers
    return header.ljust(HEADER, b"\0") + data + bytes(-len(data) % 4)


def text(pairs: Mapping[str, str]) -> bytes:
    """Write keys and values."""
    return b"".join(f"{key}={value}\0".encode() for key, value in pairs.items())


def pairs(data: bytes) -> list[tuple[str, str]]:
    """Read keys and values."""
    lines = data.decode(errors="replace").split("\0")
    return [(key, value) for key, _, value in (line.partition("=") for line in lines) if key]


class Login(NamedTuple):
    """Who logs in, where, and with what."""

    initiator: str
    target: str = ""
    username: str = ""
    password: Secret | None = None
    username_in: str = ""
    password_in: Secret | None = None
    algorithms: str = "MD5"

    def opening(self, methods: str) -> dict[str, str]:
        """Give the keys of the first request."""
        kind = {"SessionType": "Normal", "TargetName": self.target}
        return {
            "InitiatorName": self.initiator,
            **(kind if self.target else {"SessionType": "Discovery"}),
            "AuthMethod": methods,
        }

    @property
    def methods(self) -> str:
        """Say what to offer. Source: open-iscsi usr/auth.c, acl_set_auth_method_valid."""
        if self.password_in:
            return "CHAP"  # whoever wants to know that it is the target takes nothing less
        return "CHAP,None" if self.password else "None"


OPERATIONS: Final = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "ErrorRecoveryLevel": "0",
    "DefaultTime2Wait": "2",
    "DefaultTime2Retain": "0",
    "MaxRecvDataSegmentLength": "8192",
}
"""What every session negotiates here. Source: RFC 7143 section 13."""

NORMAL: Final = {
    "InitialR2T": "Yes",
    "ImmediateData": "No",
    "MaxBurstLength": "262144",
    "FirstBurstLength": "65536",
    "MaxOutstandingR2T": "1",
    "MaxConnections": "1",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
}


class Chap:
    """The initiator's half of CHAP, and in mutual CHAP its question."""

    def __init__(self, login: Login, identifier: int, challenge: bytes) -> None:
        """Begin; the number and the challenge are random, for the target to answer."""
        self._login = login
        self._identifier = identifier
        self._challenge = challenge
        self._algorithm = ""

    def offer(self) -> dict[str, str]:
        """Say which algorithms there are."""
        return {"CHAP_A": ",".join(number for number, _ in self._known())}

    def _known(self) -> list[tuple[str, str]]:
        names = (name.strip() for name in self._login.algorithms.split(","))
        return [ALGORITHMS[name] for name in names if name in ALGORITHMS]

    def answer(self, asked: Mapping[str, str]) -> dict[str, str]:
        """Answer the target's challenge, and ask it where it has to prove itself, too.

        Raises:
            AuthenticationError: there is no password to answer with.
            ProtocolError: it is no CHAP.
        """
        login, self._algorithm = self._login, dict(self._known()).get(asked.get("CHAP_A", ""), "")
        if login.password is None:
            raise AuthenticationError("the target wants a password; give 'username' and 'password'")
        identifier, challenge = asked.get("CHAP_I", ""), binary(asked.get("CHAP_C", ""))
        if not self._algorithm or not identifier.isdecimal() or not challenge:
            raise ProtocolError("the target's CHAP cannot be understood; see the target")
        digest = respond(self._algorithm, int(identifier) & 0xFF, login.password, challenge)
        said = {"CHAP_N": login.username, "CHAP_R": f"0x{digest.hex()}"}
        if login.password_in:
            said |= {"CHAP_I": str(self._identifier), "CHAP_C": f"0x{self._challenge.hex()}"}
        return said

    def check(self, said: Mapping[str, str]) -> None:
        """See that the target knows its own password, where one is given.

        Raises:
            AuthenticationError: it does not.
        """
        login = self._login
        if login.password_in is None:
            return
        wanted = respond(self._algorithm, self._identifier, login.password_in, self._challenge)
        name = login.username_in or said.get("CHAP_N", "")
        if said.get("CHAP_N") != name or not compare_digest(binary(said.get("CHAP_R", "")), wanted):
            raise AuthenticationError("the target has not proved who it is; see 'password-in'")


def respond(algorithm: str, identifier: int, secret: Secret, challenge: bytes) -> bytes:
    """Answer a challenge. Source: RFC 1994 section 4.1."""
    data = bytes([identifier]) + secret.reveal() + challenge
    return hashlib.new(algorithm, data, usedforsecurity=False).digest()


def binary(value: str) -> bytes:
    """Read a binary value; nothing where it is none, or too long.

    Source: RFC 7143 section 6.1, hex-constant and base64-constant.
    """
    prefix, digits = value[:2].lower(), value[2:]
    try:
        if prefix == "0x":
            found = bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2))
        else:
            found = b64decode(digits, validate=True) if prefix == "0b" else b""
    except ValueError:
        return b""
    return found if len(found) <= MAX_CHALLENGE else b""


def first_values(said: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Give each key once, with the value that came first."""
    found: dict[str, str] = {}
    for key, value in said:
        found.setdefault(key, value)
    return found
