# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our unit, as systemd and the bus see it."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from storaged_conn.bus.connection import Bus
from storaged_conn.bus.wire import Field, Message
from storaged_conn.names import DBUS, SERVICE
from tests.caller import MAX_MESSAGE
from tests.live import DEADLINE

UNIT: Final = "storaged-conn.service"

SYSTEM_BUS: Final = "unix:path=/run/dbus/system_bus_socket"
"""Source: D-Bus specification, Well-known Message Bus Instances."""


def tool(*argv: str | Path, text: str | None = None) -> str:
    """Run a tool that must succeed; gives its output."""
    command = [str(word) for word in argv]
    done = subprocess.run(
        command, input=text, text=True, capture_output=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def start() -> None:
    """Return when the service is up."""
    tool("systemctl", "start", UNIT)


def show(name: str) -> str:
    """Give a property of the unit."""
    return tool("systemctl", "show", f"--property={name}", "--value", UNIT).strip()


def seconds(name: str) -> float:
    """Give a monotonic time stamp of the unit; systemd keeps microseconds."""
    return int(show(f"{name}TimestampMonotonic")) / 1e6


@asynccontextmanager
async def owners() -> AsyncIterator["asyncio.Queue[str]"]:
    """Give the owners that the service's name gets from now on; "" is none."""
    changes: asyncio.Queue[str] = asyncio.Queue()

    def hear(message: Message) -> None:
        if message.text(Field.SENDER) == DBUS and message.text(Field.MEMBER) == "NameOwnerChanged":
            _, _, new = message.arguments()
            changes.put_nowait(str(new))

    bus = await Bus.open(SYSTEM_BUS, max_message=MAX_MESSAGE)
    try:
        bus.listen(hear)
        rule = f"type='signal',sender='{DBUS}',member='NameOwnerChanged',arg0='{SERVICE}'"
        await bus.ask("AddMatch", "s", rule)
        yield changes
    finally:
        bus.close()


async def restarted(changes: "asyncio.Queue[str]") -> None:
    """Return when the service has gone and is up again."""
    async with asyncio.timeout(DEADLINE):
        assert not await changes.get()
        assert await changes.get()
    await asyncio.to_thread(start)
