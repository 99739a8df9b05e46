# SPDX-License-Identifier: LGPL-2.1-or-later
"""storaged-connctl as a program, for tests."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from tests.live import DEADLINE

NO_CHANGES: Final[Mapping[str, str]] = {}


class Result(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed, as JSON."""
        assert self.out, self.err
        return json.loads(self.out)

    @property
    def managed(self) -> list[Any]:
        """The connections in its JSON; somebody may mount something, which is listed too."""
        return [one for one in self.document if one["Managed"]]


class Control:
    """storaged-connctl on one bus."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def __call__(
        self, *argv: str, env: Mapping[str, str] = NO_CHANGES, given: bytes | None = None
    ) -> Result:
        """Run a command, with something at its standard input."""
        async with self.started(*argv, env=env, source=PIPE) as process:
            return await ended(process, given)

    @asynccontextmanager
    async def started(
        self,
        *argv: str,
        out: int = PIPE,
        env: Mapping[str, str] = NO_CHANGES,
        source: int | None = None,
        prefix: Sequence[str] = (),
    ) -> AsyncIterator[Process]:
        """Run a command meanwhile.

        Args:
            argv: after the program's name.
            out: its standard output.
            env: what is different in its environment.
            source: its standard input, the test's own by default.
            prefix: a command line that executes the one after it.
        """
        command = [*prefix, sys.executable, "-m", "storaged_conn.ctl", "--bus", self.address, *argv]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=source, stdout=out, stderr=PIPE, env=os.environ | dict(env)
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


async def ended(process: Process, given: bytes | None = None) -> Result:
    """Wait for the end of a command, and take what it printed."""
    out, err = await asyncio.wait_for(process.communicate(given), DEADLINE)
    assert process.returncode is not None
    return Result(process.returncode, (out or b"").decode(), err.decode())


async def line(process: Process) -> str:
    """Wait for the next line that a command prints, about anything but what others mount."""
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        while True:
            text = (await process.stdout.readline()).decode().rstrip("\n")
            if "unmanaged/" not in text:
                return text
