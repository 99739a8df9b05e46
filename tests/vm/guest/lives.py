# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lives of the service, one after the other, as systemd and the bus tell of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from storaged_conn.bus.connection import Bus
from storaged_conn.bus.wire import Field, Message
from storaged_conn.names import DBUS, PROPERTIES, SERVICE
from tests.caller import CHANGED, MAX_MESSAGE
from tests.live import DEADLINE
from tests.vm.guest.units import SYSTEM_BUS, show

SYSTEMD: Final = "org.freedesktop.systemd1"
UNIT_PATH: Final = "/org/freedesktop/systemd1/unit/storaged_2dconn_2eservice"
"""Source: sd_bus_path_encode(3)."""


class Lives:
    """The life that is, and the next.

    Attributes:
        pid: of the main process, 0 while there is none.
        owner: of the service's name, empty while there is none.
    """

    def __init__(self) -> None:
        self.pid = int(show("MainPID"))
        self.owner = ""
        self._last = 0
        self._news = asyncio.Event()

    def end(self) -> None:
        """Believe nothing any more that was told of the one that is."""
        self._last, self.pid, self.owner = self.pid, 0, ""

    async def begins(self) -> None:
        """Return when there is a main process."""
        await self._until(lambda: self.pid)

    async def serves(self) -> None:
        """Return when the name is owned."""
        await self._until(lambda: self.pid and self.owner)

    async def _until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not what():
                self._news.clear()
                await self._news.wait()

    def hear(self, message: Message) -> None:
        """Take a signal of the bus or of systemd."""
        member = message.text(Field.MEMBER)
        if member == "NameOwnerChanged" and message.text(Field.SENDER) == DBUS:
            self.owner = str(message.arguments()[2])
        elif member == CHANGED and message.text(Field.PATH) == UNIT_PATH:
            self._take(message.arguments()[1])
        self._news.set()

    def _take(self, changed: dict[str, Any]) -> None:
        pid = changed.get("MainPID")
        if pid and pid.value != self._last:  # of the one that has ended
            self.pid = pid.value


@asynccontextmanager
async def lives() -> AsyncIterator[Lives]:
    """Follow the service, which runs now."""
    bus = await Bus.open(SYSTEM_BUS, max_message=MAX_MESSAGE)
    try:
        owner = f"type='signal',sender='{DBUS}',member='NameOwnerChanged',arg0='{SERVICE}'"
        await bus.ask("AddMatch", "s", owner)
        unit = f"sender='{SYSTEMD}',interface='{PROPERTIES}',path='{UNIT_PATH}'"
        await bus.ask("AddMatch", "s", f"type='signal',{unit}")
        where = (SYSTEMD, "/org/freedesktop/systemd1", f"{SYSTEMD}.Manager", "Subscribe")
        await bus.call(where, timeout=DEADLINE)
        service = Lives()
        bus.listen(service.hear)
        (service.owner,) = await bus.ask("GetNameOwner", "s", SERVICE)
        yield service
    finally:
        bus.close()
