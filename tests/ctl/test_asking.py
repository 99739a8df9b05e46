# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whoever calls by storaged-connctl may be asked for a password."""

import pytest

from storaged_conn.bus import wire
from storaged_conn.bus.wire import Field, Flag, Message
from storaged_conn.ctl.client import open_client
from storaged_conn.names import ROOT, SERVICE
from tests.bus.wires import connected
from tests.live import private_bus

pytestmark = pytest.mark.bus

GIVES: dict[str, tuple[str, list[object]]] = {
    "Manage": ("o", ["/x"]),
    "Validate": ("a{sv}", [{}]),
    "Discover": ("aa{sv}", [[]]),
}


async def test_what_needs_authorization_may_ask_for_it() -> None:
    asking: dict[str, bool] = {}
    with private_bus() as address:
        async with connected(address) as service, open_client(address) as client:

            def answer(call: Message) -> None:
                member = call.text(Field.MEMBER)
                asking[member] = bool(call.flags & Flag.ALLOW_INTERACTIVE_AUTHORIZATION)
                signature, body = GIVES.get(member, ("", []))
                service.reply(call, signature, wire.marshal(signature, body))

            service.on_call = answer
            await service.ask("RequestName", "su", SERVICE, 0)
            await client.manage("file:///x", "x", {})
            await client.unmanage("x")
            await client.validate("file:///x", {})
            await client.discover("file:///x", {})
            await client.reconnect(f"{ROOT}/x")
    names = ("Manage", "Unmanage", "Validate", "Discover", "Reconnect")
    assert asking == dict.fromkeys(names, True)
