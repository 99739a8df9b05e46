# SPDX-License-Identifier: LGPL-2.1-or-later
"""Talks to an iSCSI target as far as its login phase goes: is it there, does it let us in?

iscsiadm could ask too, but not without a node record or a session that others see, and it takes
17 s to say that a port refuses (kernel-events.md). What is said here leaves nothing behind.

A login may be broken off at any time, which no target minds; but LIO serves one login after the
other for each portal, so none is left waiting.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from storaged_conn.errors import ProtocolError, TroubleError
from storaged_conn.system.iscsi_dialogue import dialogue
from storaged_conn.system.iscsi_pdu import Login, pairs
from storaged_conn.system.resolve import resolve
from storaged_conn.system.sentinel import Address

MOVES: Final = 4
"""Portals that send us on to another before it is a loop."""

ANY_METHOD: Final = "CHAP,None"
"""What a knock offers, since it says nothing of either."""

_PORTAL: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:,]+)(?::([0-9]{1,5}))?(?:,([0-9]{1,5}))?")
"""Source: RFC 7143 section 13.8."""

PORT: Final = 3260
"""Source: RFC 7143 section 4.2.7.1."""


class Portal(NamedTuple):
    """Where a target is, and which of its portal groups that is in."""

    address: Address
    group: int


async def knock(address: Address, login: Login) -> int:
    """See that a target is there, without a secret and without a session.

    Args:
        address: its host is an address.
        login: who would log in.

    Returns:
        The target portal group tag.

    Raises:
        AttemptError: it is not, or not for us.
    """
    for _ in range(MOVES):
        async with dialogue(address) as talk:
            said = await talk.open(login, ANY_METHOD)
            if talk.status[0] != 1:
                talk.check()
                tag = said.get("TargetPortalGroupTag", "")
                return int(tag) if tag.isdecimal() else 1
            address = await _moved(said)
    raise TroubleError("the target is always moved to another portal; see the target")


async def log_in(address: Address, login: Login) -> None:
    """Log in and out again.

    Args:
        address: its host is an address.
        login: who logs in.

    Raises:
        AttemptError: that would fail.
    """
    for _ in range(MOVES):
        async with dialogue(address) as talk:
            said = await talk.log_in(login)
            if talk.status[0] != 1:
                await talk.log_out()
                return
            address = await _moved(said)
    raise TroubleError("the target is always moved to another portal; see the target")


async def list_targets(address: Address, login: Login) -> dict[str, list[Portal]]:
    """Ask for all targets, and all portals of each.

    Args:
        address: its host is an address.
        login: without a target.

    Raises:
        AttemptError: they are not told.
    """
    async with dialogue(address) as talk:
        await talk.log_in(login)
        talk.check()
        data = await talk.send_targets()
        await talk.log_out()
    found: dict[str, list[Portal]] = {}
    name = ""
    for key, value in pairs(data):
        if key == "TargetName":
            name = value
            found[name] = []
        elif key == "TargetAddress" and name and (portal := read_portal(value)):
            found[name].append(portal)
    # a target without an address is where it was asked for: RFC 7143 appendix C
    return {name: portals or [Portal(address, 1)] for name, portals in found.items()}


def read_portal(text: str) -> Portal | None:
    """Read ADDRESS[:PORT][,GROUP]."""
    match = _PORTAL.fullmatch(text)
    if not match:
        return None
    host, port, group = match.groups()
    return Portal(Address(host.strip("[]"), int(port or PORT)), int(group or 1))


async def _moved(said: Mapping[str, str]) -> Address:
    portal = read_portal(said.get("TargetAddress", ""))
    if portal is None:
        raise ProtocolError("the target has moved, and does not say where to; see the target")
    host, *_ = await resolve(portal.address.host)
    return portal.address._replace(host=host)
