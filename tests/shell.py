# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands that everybody has for D-Bus, busctl(1) and gdbus(1), as a person types them.

`pytest -s` prints what was typed and what came of it.
"""

import asyncio
import json
import shlex
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from storaged_conn.names import CONNECTION, MANAGER, ROOT, SERVICE
from tests.live import DEADLINE

FAILED: Final = 1
"""Exit status for an error reply. Source: busctl(1); gio/gdbus-tool.c, handle_call()."""


def show(text: str) -> None:
    """Print to whoever has asked for it by `pytest -s`."""
    sys.stdout.write(f"{text}\n")


class Shell:
    """Types commands at one bus."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def run(self, *argv: str, status: int = 0) -> str:
        """Run a command that must end with this status; gives what it printed."""
        self._show_typed(argv)
        process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=STDOUT)
        out, _ = await asyncio.wait_for(process.communicate(), DEADLINE)
        text = out.decode().rstrip("\n")
        if text:
            show(text)
        assert process.returncode == status, text
        return text

    # busctl

    async def busctl(self, *argv: str, status: int = 0) -> str:
        """Run busctl on the bus."""
        return await self.run("busctl", f"--address={self._address}", *argv, status=status)

    async def call(self, method: str, *argv: str, path: str = ROOT) -> str:
        """Call a method of the manager, or of the connection at a path."""
        interface = MANAGER if path == ROOT else CONNECTION
        return await self.busctl("call", SERVICE, path, interface, method, *argv)

    async def manage(self, uri: str, cid: str, *options: str) -> str:
        """Manage without options, or with those in busctl's notation; gives the object's path."""
        said = await self.call("Manage", "ssa{sv}", uri, cid, *(options or ["0"]))
        return said.removeprefix('o "').removesuffix('"')

    async def unmanage(self, cid: str) -> None:
        """Unmanage."""
        assert not await self.call("Unmanage", "sa{sv}", cid, "0")

    async def wait(self, path: str, state: str) -> None:
        """Wait until a connection is in a state."""
        usec = str(int(DEADLINE * 1e6))
        said = await self.call("WaitFor", "sta{sv}", state, usec, "0", path=path)
        assert said == f's "{state}"'

    async def listed(self) -> dict[str, Any]:
        """List, as JSON."""
        text = await self.busctl("--json=short", "call", SERVICE, ROOT, MANAGER, "List")
        (found,) = json.loads(text)["data"]
        return {
            cid: {name: one["data"] for name, one in view.items()} for cid, view in found.items()
        }

    async def get(self, path: str, *names: str) -> list[Any]:
        """Give some properties of a connection."""
        argv = ("--json=short", "get-property", SERVICE, path, CONNECTION, *names)
        return [json.loads(line)["data"] for line in (await self.busctl(*argv)).splitlines()]

    # gdbus

    async def gdbus(self, verb: str, *argv: str, path: str = ROOT, status: int = 0) -> str:
        """Run gdbus on an object of the service."""
        where = ("--address", self._address, "--dest", SERVICE, "--object-path", path)
        return await self.run("gdbus", verb, *where, *argv, status=status)

    async def refused(self, name: str, method: str, *argv: str, path: str = ROOT) -> str:
        """Call a method that must be refused with this error; gives its text."""
        interface = MANAGER if path == ROOT else CONNECTION
        call = ("--method", f"{interface}.{method}", *argv)
        said = await self.gdbus("call", *call, path=path, status=FAILED)
        start = f"Error: GDBus.Error:{name if '.' in name else f'{SERVICE}.Error.{name}'}: "
        assert said.startswith(start), said
        return said.removeprefix(start)

    @asynccontextmanager
    async def monitor(self) -> AsyncIterator["Monitor"]:
        """Run `gdbus monitor` meanwhile."""
        argv = ("gdbus", "monitor", "--address", self._address, "--dest", SERVICE)
        self._show_typed((*argv, "&"))
        process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE)
        try:
            monitor = Monitor(process)
            await monitor.sees(lambda line: f"The name {SERVICE} is owned by" in line)
            yield monitor
        finally:
            process.kill()
            await process.communicate()

    def _show_typed(self, argv: tuple[str, ...]) -> None:
        show(f"$ {shlex.join(argv)}".replace(self._address, "$BUS").replace("'&'", "&"))


class Monitor:
    """A running `gdbus monitor`.

    Attributes:
        lines: what it has printed.
    """

    def __init__(self, process: Process) -> None:
        self.lines: list[str] = []
        self._process = process

    async def sees(self, what: Callable[[str], object]) -> str:
        """Give the next line that is as wanted, leaving out those before it."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            while True:
                line = (await self._process.stdout.readline()).decode().rstrip("\n")
                assert line, f"gdbus monitor has ended; it had printed {self.lines}"
                self.lines.append(line)
                if what(line):
                    show(line)
                    return line

    async def signal(self, path: str, member: str, *words: str) -> str:
        """Give the next signal of a member, from a path, with some words in it."""
        start = f"{path}: {member} ("
        return await self.sees(
            lambda line: line.startswith(start) and all(word in line for word in words)
        )
