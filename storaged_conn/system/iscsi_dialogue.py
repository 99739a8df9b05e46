# SPDX-License-Identifier: LGPL-2.1-or-later
"""One connection to an iSCSI target, as far as its login phase and a list of targets go."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from struct import pack
from typing import Final

from storaged_conn.errors import (
    AccessDeniedError,
    AttemptError,
    AuthenticationError,
    BusyError,
    MissingError,
    ProtocolError,
    ServerRefusedError,
    TimedOutError,
    TroubleError,
    UnreachableError,
)
from storaged_conn.system import iscsi_pdu as pdu
from storaged_conn.system.iscsi_pdu import Answer, Chap, Login
from storaged_conn.system.sentinel import Address

DEADLINE: Final = 15.0
"""Seconds for all of a login. Source: iscsid.conf, node.conn[0].timeo.login_timeout."""

MAX_SEGMENT: Final = 8192
"""Bytes of one PDU in the login phase. Source: RFC 7143 section 13.12."""

MAX_TEXT: Final = 4 << 20
"""Bytes: a list of 30 000 targets."""

ROUNDS: Final = 20
"""Requests of one login; three or four are usual."""

TASK: Final = 1
NO_TAG: Final = 0xFFFFFFFF
"""Source: RFC 7143 section 11.10.4."""

STATUS: Final[Mapping[tuple[int, int], tuple[type[AttemptError], str]]] = {
    (2, 1): (AuthenticationError, "the target refuses these credentials"),
    (2, 2): (AccessDeniedError, "the target is not for this initiator; see its access list"),
    (2, 3): (MissingError, "the portal has no such target"),
    (2, 4): (MissingError, "the target has been removed"),
    (2, 5): (ProtocolError, "the target speaks another version of iSCSI"),
    (2, 6): (BusyError, "the target has too many connections"),
    (2, 9): (ProtocolError, "the target does not know this kind of session"),
    (3, 0): (TroubleError, "the target has trouble of its own"),
    (3, 1): (MissingError, "the portal has no such target, or it is not in service"),
    (3, 2): (TroubleError, "the target has run out of something"),
}
"""Source: RFC 7143 section 11.13.5. LIO says 3, 1 of a name that it does not know; it is in its
iscsi_target_locate_portal."""


@asynccontextmanager
async def dialogue(address: Address) -> AsyncIterator["Dialogue"]:
    """Connect, and end everything in time.

    Raises:
        AttemptError: there is no answer.
    """
    where, loop = address.text, asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        async with asyncio.timeout(DEADLINE):
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
                await loop.sock_connect(connection, address)
                yield Dialogue(connection, where)
    except TimeoutError:
        raise TimedOutError(f"{where}: no answer within {DEADLINE:g} s; see the target") from None
    except (EOFError, ConnectionResetError, BrokenPipeError):
        raise TroubleError(f"{where}: the target has hung up; see the target") from None
    except ConnectionRefusedError:
        raise ServerRefusedError(f"{where}: nothing answers on this port; see target") from None
    except OSError as error:
        raise UnreachableError(f"{where}: {error.strerror}; see the target") from None


class Dialogue:
    """One connection.

    Attributes:
        status: class and detail of the last answer to a login.
    """

    def __init__(self, connection: socket.socket, where: str) -> None:
        """Say nothing yet."""
        self.status = (0, 0)
        self._connection = connection
        self._heard = b""
        self._where = where
        self._isid = bytes([pdu.RANDOM_ISID]) + secrets.token_bytes(5)
        self._session = 0
        self._stage = pdu.SECURITY
        self._expected = 0

    def check(self) -> None:
        """Raise what the target has against the login.

        Raises:
            AttemptError: it says no.
        """
        if self.status != (0, 0):
            unknown = (ProtocolError, f"the target refuses the login with {self.status}")
            kind, words = STATUS.get(self.status, unknown)
            raise kind(f"{self._where}: {words}")

    async def open(self, login: Login, methods: str) -> dict[str, str]:
        """Make the first request of a login; gives what the target said."""
        moving = pdu.OPERATIONAL if methods == "None" else None
        return await self._ask(login.opening(methods), moving)

    async def log_in(self, login: Login) -> dict[str, str]:
        """Go through all of the login phase, or up to where the target moves us on.

        Raises:
            AttemptError: the target says no, or cannot be understood.
        """
        try:
            said = await self.open(login, login.methods)
        except (EOFError, ConnectionResetError):
            if login.password:
                raise
            # LIO says no more where it wants CHAP: drivers/target/iscsi, iscsi_check_value()
            raise AuthenticationError(f"{self._where}: no login without a password") from None
        if self.status[0] == 1:
            return said
        self.check()
        if said.get("AuthMethod") == "CHAP":
            await self._prove(login)
        elif login.password_in:
            raise AuthenticationError(f"{self._where}: the target does not prove who it is")
        await self._operate(login)
        return said

    async def log_out(self) -> None:
        """End the session. Nobody is waited for who does not say so."""
        numbers = pack(">IIII", TASK, 0, 1, self._expected)
        kind = pdu.LOGOUT | pdu.IMMEDIATE
        with suppress(EOFError, ConnectionResetError, BrokenPipeError):
            await self._send(pdu.write(kind, pdu.FINAL, b"", numbers=numbers))
            await self._receive(pdu.LOGOUT_ANSWER)

    async def send_targets(self) -> bytes:
        """Ask for all targets; gives the answer's text."""
        found, data, tag = b"", pdu.text({"SendTargets": "All"}), NO_TAG
        while True:
            numbers = pack(">IIII", TASK, tag, 1, self._expected)
            kind = pdu.TEXT | pdu.IMMEDIATE
            await self._send(pdu.write(kind, pdu.FINAL, data, numbers=numbers))
            answer, more = await self._receive(pdu.TEXT_ANSWER)
            found, data, tag = found + more, b"", answer.target_tag
            if len(found) > MAX_TEXT:
                raise TroubleError(f"{self._where}: there are too many targets; see the target")
            if tag == NO_TAG:
                return found

    async def _prove(self, login: Login) -> None:
        chap = Chap(login, secrets.randbits(8), secrets.token_bytes(16))
        asked = await self._ask(chap.offer(), None)
        self.check()
        said = await self._ask(chap.answer(asked), pdu.OPERATIONAL)
        self.check()
        chap.check(said)

    async def _operate(self, login: Login) -> None:
        keys = pdu.OPERATIONS | (pdu.NORMAL if login.target else {})
        for _ in range(ROUNDS):
            self.check()
            if self._stage == pdu.FULL_FEATURE:
                return
            moving = pdu.OPERATIONAL if self._stage == pdu.SECURITY else pdu.FULL_FEATURE
            first = keys if self._stage == pdu.OPERATIONAL else {}
            await self._ask(first, moving)
            keys = {} if first else keys
        raise ProtocolError(f"{self._where}: the login has no end; see the target")

    async def _ask(self, keys: Mapping[str, str], moving: int | None) -> dict[str, str]:
        """Make one request of the login, and hear all of the answer."""
        flags = self._stage << 2 | (pdu.FINAL | moving if moving is not None else 0)
        await self._send_login(flags, pdu.text(keys))
        answer, data = await self._receive(pdu.LOGIN_ANSWER)
        while answer.continues and len(data) <= MAX_TEXT:
            await self._send_login(self._stage << 2, b"")
            answer, more = await self._receive(pdu.LOGIN_ANSWER)
            data += more
        self.status = answer.status
        if self.status == (0, 0) and answer.moves_on:
            self._stage = answer.flags & 3
        self._session = answer.session
        return pdu.first_values(pdu.pairs(data))

    async def _send_login(self, flags: int, data: bytes) -> None:
        isid = self._isid + self._session.to_bytes(2)
        numbers = pack(">IIII", TASK, 0, 1, self._expected)
        kind = pdu.LOGIN | pdu.IMMEDIATE
        await self._send(pdu.write(kind, flags, data, isid=isid, numbers=numbers))

    async def _receive(self, kind: int) -> tuple[Answer, bytes]:
        """Take the next answer of a kind; what a target may say in between is passed over.

        Raises:
            ProtocolError: it is something else.
        """
        while True:
            answer = pdu.read(await self._take(pdu.HEADER))
            if answer.size > MAX_SEGMENT:
                raise ProtocolError(f"{self._where}: this is not iSCSI; see the port")
            padded = answer.size + -answer.size % 4
            data = (await self._take(padded))[: answer.size]
            if answer.kind == kind:
                self._expected = (answer.serial + 1) & 0xFFFFFFFF
                return answer, data
            if answer.kind not in {pdu.NOP_IN, pdu.ASYNC}:
                raise ProtocolError(f"{self._where}: this is not iSCSI; see the port")

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, data)

    async def _take(self, size: int) -> bytes:
        """Take some bytes: what has been said before a reset, too, as LIO does that to a refusal.

        A StreamReader would forget those.

        Raises:
            EOFError: they do not come.
        """
        while len(self._heard) < size:
            more = await asyncio.get_running_loop().sock_recv(self._connection, MAX_SEGMENT)
            if not more:
                raise EOFError
            self._heard += more
        taken, self._heard = self._heard[:size], self._heard[size:]
        return taken
