# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from storaged_conn.core.secret import Secret
from storaged_conn.errors import (
    AccessDeniedError,
    AttemptError,
    AuthenticationError,
    BusyError,
    MissingError,
    ProtocolError,
    ServerRefusedError,
    TroubleError,
    UnreachableError,
)
from storaged_conn.system.iscsi_dialogue import STATUS
from storaged_conn.system.iscsi_login import (
    MOVES,
    Portal,
    knock,
    list_targets,
    log_in,
    read_portal,
)
from storaged_conn.system.iscsi_pdu import Login
from storaged_conn.system.sentinel import Address
from tests import iscsi_target
from tests.iscsi_target import Account

HOST = "iqn.1993-08.org.debian:01:abc"
OPEN = "iqn.2003-01.org:open"
LOCKED = "iqn.2003-01.org:locked"
PASSWORD = Secret(b"a password of 20 b")
PROOF = Secret(b"what the target knows")
ACCOUNT = Account("me", "a password of 20 b", "it", "what the target knows")


@pytest.fixture
async def portal() -> AsyncIterator[iscsi_target.Portal]:
    async with iscsi_target.portal({"": None, OPEN: None, LOCKED: ACCOUNT}) as portal:
        yield portal


def login(target: str, password: Secret | None = None, proof: Secret | None = None) -> Login:
    return Login(HOST, target, "me" if password else "", password, "it" if proof else "", proof)


@pytest.mark.parametrize("target", [OPEN, LOCKED])
async def test_a_knock_finds_the_group_and_says_no_secret(
    portal: iscsi_target.Portal, target: str
) -> None:
    portal.group = 7
    assert await knock(portal.address, login(target, PASSWORD)) == 7
    assert portal.sessions == 0
    (said,) = portal.said
    assert said["AuthMethod"] == "CHAP,None"
    assert not {"CHAP_N", "CHAP_R"} & said.keys()


@pytest.mark.parametrize(
    "who",
    [
        login(OPEN),
        login(OPEN, PASSWORD),
        login(LOCKED, PASSWORD),
        login(LOCKED, PASSWORD, PROOF),
        login(LOCKED, PASSWORD, PROOF)._replace(username_in=""),
    ],
)
async def test_a_login_goes_well_and_is_ended(portal: iscsi_target.Portal, who: Login) -> None:
    await log_in(portal.address, who)
    assert (portal.sessions, portal.logouts) == (1, 1)


@pytest.mark.parametrize(
    "who",
    [
        login(LOCKED),
        login(LOCKED, Secret(b"another")),
        login(LOCKED, PASSWORD)._replace(username="you"),
        login(LOCKED, PASSWORD, Secret(b"another")),
        login(LOCKED, PASSWORD, PROOF)._replace(username_in="you"),
        login(LOCKED, PASSWORD, PASSWORD),
    ],
)
async def test_a_login_that_proves_nothing_is_an_authentication_error(
    portal: iscsi_target.Portal, who: Login
) -> None:
    with pytest.raises(AuthenticationError) as caught:
        await log_in(portal.address, who)
    assert "password" not in str(caught.value).replace("'password-in'", "").replace(
        "'password'", ""
    )
    assert portal.sessions == 0


async def test_who_wants_a_proof_takes_no_login_without(portal: iscsi_target.Portal) -> None:
    with pytest.raises(AuthenticationError):
        await log_in(portal.address, login(OPEN, PASSWORD, PROOF))
    assert portal.sessions == 0


async def test_a_secret_is_never_on_the_wire(portal: iscsi_target.Portal) -> None:
    await log_in(portal.address, login(LOCKED, PASSWORD, PROOF))
    values = [value.encode() for keys in portal.said for value in keys.values()]
    secrets = (PASSWORD.reveal(), PROOF.reveal())
    assert not any(secret in value for secret in secrets for value in values)


STATUSES = {
    (2, 0): ProtocolError,
    (2, 1): AuthenticationError,
    (2, 2): AccessDeniedError,
    (2, 3): MissingError,
    (2, 4): MissingError,
    (2, 5): ProtocolError,
    (2, 6): BusyError,
    (2, 9): ProtocolError,
    (2, 11): ProtocolError,
    (3, 0): TroubleError,
    (3, 1): MissingError,
    (3, 2): TroubleError,
}


@pytest.mark.parametrize(("status", "error"), STATUSES.items())
@pytest.mark.parametrize("ask", [knock, log_in])
async def test_what_a_target_says_is_told_apart(
    portal: iscsi_target.Portal,
    ask: object,
    status: tuple[int, int],
    error: type[AttemptError],
) -> None:
    assert STATUS.keys() <= STATUSES.keys()
    portal.status[OPEN] = status
    with pytest.raises(error) as caught:
        await (knock if ask is knock else log_in)(portal.address, login(OPEN))
    assert type(caught.value) is error


async def test_a_target_that_is_not_there_is_missing(portal: iscsi_target.Portal) -> None:
    with pytest.raises(MissingError):
        await knock(portal.address, login("iqn.2003-01.org:nonesuch"))


@pytest.mark.parametrize("ask", [knock, log_in])
async def test_a_target_that_has_moved_is_followed(
    portal: iscsi_target.Portal, ask: object
) -> None:
    async with iscsi_target.portal({OPEN: None}) as other:
        portal.moved[OPEN] = other.address.text
        await (knock if ask is knock else log_in)(portal.address, login(OPEN))
        assert len(other.said) >= 1
        other.moved[OPEN] = portal.address.text
        with pytest.raises(TroubleError):
            await (knock if ask is knock else log_in)(portal.address, login(OPEN))
    assert len(portal.said) == 1 + MOVES // 2
    portal.moved[OPEN] = "nowhere:at all"
    with pytest.raises(ProtocolError):
        await (knock if ask is knock else log_in)(portal.address, login(OPEN))


async def test_all_targets_are_listed_with_their_portals(portal: iscsi_target.Portal) -> None:
    portal.chunk = 50  # in many answers
    found = await list_targets(portal.address, login(""))
    assert found == {name: [Portal(portal.address, 1)] for name in (OPEN, LOCKED)}
    assert portal.said[0]["SessionType"] == "Discovery"
    assert portal.logouts == 1


async def test_a_list_may_want_a_password(portal: iscsi_target.Portal) -> None:
    portal.targets[""] = ACCOUNT
    with pytest.raises(AuthenticationError):
        await list_targets(portal.address, login(""))
    assert len(await list_targets(portal.address, login("", PASSWORD))) == 2


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2\r\n" * 4, b"\x3f" * 48, b"\x23" + b"\xff" * 47]
)
async def test_what_is_no_iscsi_is_no_iscsi(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)

    async with iscsi_target.serving(serve) as address:
        with pytest.raises(ProtocolError):
            await knock(address, login(OPEN))


async def test_what_is_said_before_a_reset_is_heard() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(48)  # and not the rest, so that the kernel resets
        answer = bytes([0x23, 0]) + bytes(34) + bytes([2, 1]) + bytes(10)
        writer.write(answer)
        await writer.drain()

    async with iscsi_target.serving(serve) as address:
        for ask in (knock, log_in):
            with pytest.raises(AuthenticationError):
                await ask(address, login(OPEN))


async def test_who_hangs_up_is_trouble() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    async with iscsi_target.serving(serve) as address:
        with pytest.raises(TroubleError):
            await knock(address, login(OPEN))


async def test_a_port_that_refuses_is_told() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ServerRefusedError):
            await knock(Address(*closed.getsockname()), login(OPEN))


async def test_an_address_that_is_none_is_unreachable() -> None:
    with pytest.raises(UnreachableError):
        await knock(Address("255.255.255.255", 3260), login(OPEN))


@pytest.mark.parametrize(
    ("text", "portal"),
    [
        ("10.0.0.1", Portal(Address("10.0.0.1", 3260), 1)),
        ("10.0.0.1:860,2", Portal(Address("10.0.0.1", 860), 2)),
        ("[fd09::2]:3260,65535", Portal(Address("fd09::2", 3260), 65535)),
        ("name.example,3", Portal(Address("name.example", 3260), 3)),
        ("fd09::2", None),
        ("10.0.0.1:", None),
        ("", None),
        ("a b,", None),
    ],
)
def test_a_portal_is_read(text: str, portal: Portal | None) -> None:
    assert read_portal(text) == portal
