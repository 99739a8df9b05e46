# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connections that a test changes, and what the bus is told of them."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from storaged_conn.bus import wire
from storaged_conn.bus.wire import Field, Message
from storaged_conn.front.contract import load
from storaged_conn.front.objects import Objects
from storaged_conn.names import CONNECTION, OBJECT_MANAGER, PROPERTIES, object_path
from tests.front.stage import FakeBus

INTERFACE = load()[CONNECTION]
SIGNALLED = {name for name, one in INTERFACE.properties.items() if one.emits == "true"}
QUIET = INTERFACE.properties.keys() - SIGNALLED
DEFAULTS: dict[str, object] = {"b": False, "s": "", "t": 0, "i": 0, "u": 0, "as": (), "a{sv}": {}}
FRESH = {name: DEFAULTS[one.signature] for name, one in INTERFACE.properties.items()}


@dataclass
class Sent:
    """A signal, and when it was sent."""

    at: float
    path: str
    member: str
    body: list[Any]

    @property
    def values(self) -> dict[str, object]:
        """What PropertiesChanged tells."""
        assert self.member == "PropertiesChanged"
        interface, changed, invalidated = self.body
        assert (interface, invalidated) == (CONNECTION, [])
        plain = wire.plain(changed)
        assert isinstance(plain, dict)
        return plain


class TimedBus(FakeBus):
    """Keeps signals with their time."""

    def __init__(self) -> None:
        super().__init__()
        self.signals: list[Sent] = []

    def send(self, message: Message) -> int:
        path, member = message.text(Field.PATH), message.text(Field.MEMBER)
        wanted = PROPERTIES if member == "PropertiesChanged" else OBJECT_MANAGER
        assert message.text(Field.INTERFACE) == wanted
        now = asyncio.get_running_loop().time()
        self.signals.append(Sent(now, path, member, message.arguments()))
        return super().send(message)


@dataclass
class World:
    """Connections that a test changes, and what the bus is told of them."""

    bus: TimedBus = field(default_factory=TimedBus)
    states: dict[str, dict[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.objects = Objects(self.bus, INTERFACE, self.states.get)
        self.objects.announce()

    def add(self, *cids: str) -> None:
        for cid in cids:
            self.states[cid] = FRESH | {"ConnectionId": cid}
            self.objects.added(cid)

    def change(self, cid: str, **values: object) -> None:
        self.states[cid] |= values
        self.objects.changed(cid)

    def remove(self, cid: str) -> None:
        del self.states[cid]
        self.objects.removed(cid)

    def told(self, cid: str) -> list[tuple[float, dict[str, object]]]:
        """Give what PropertiesChanged said of one connection, and when."""
        return [
            (round(one.at, 6), one.values)
            for one in self.bus.signals
            if one.path == object_path(cid)
        ]


async def turn() -> None:
    """Let the loop turn once; no time passes."""
    await asyncio.sleep(0)


def variants(state: dict[str, Any]) -> dict[str, Any]:
    """Make what dbus-next would marshal."""
    return {
        name: wire.variant(one.signature, state[name]) for name, one in INTERFACE.properties.items()
    }
