# SPDX-License-Identifier: LGPL-2.1-or-later
"""A caller that is not root, in a process of its own: `python -m tests.nobody ADDRESS UID`.

It reads calls as lines of JSON, [path, interface, member, signature, body, flags], and writes for
each what came of it: [error name or "", error text or result]. It imports as root and connects as
somebody else: a source tree may be where only root can read.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus, CallError
from storaged_conn.names import SERVICE
from tests.live import DEADLINE

NOBODY = 65534
"""Source: Debian Policy, 9.2.2."""

TOP = Path(__file__).parents[1]


class Other:
    """A caller with another uid."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def call(
        self, path: str, method: str, signature: str = "", *body: object, flags: int = 0
    ) -> Any:
        """Give the name of the error, and the result or the text of the error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        interface, _, member = method.rpartition(".")
        line = json.dumps([path, interface, member, signature, body, flags])
        self.process.stdin.write(line.encode() + b"\n")
        async with asyncio.timeout(DEADLINE):
            return json.loads(await self.process.stdout.readline() or '["gone", ""]')


@asynccontextmanager
async def other(address: str, uid: int = NOBODY) -> AsyncIterator[Other]:
    """Connect somebody else."""
    argv = (sys.executable, "-m", "tests.nobody", address, str(uid))
    process = await asyncio.create_subprocess_exec(*argv, cwd=TOP, stdin=PIPE, stdout=PIPE)
    try:
        yield Other(process)
    finally:
        await process.communicate(b"")  # which ends it


async def main(address: str, uid: int) -> None:
    """Call as told, one after the other."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    bus = await Bus.open(address, max_message=2**27)
    while line := await asyncio.to_thread(sys.stdin.readline):
        path, interface, member, signature, body, flags = json.loads(line)
        where = (SERVICE, path, interface, member)
        try:
            reply = await bus.call(where, signature, body, timeout=DEADLINE, flags=flags)
            answer = ["", wire.plain(reply)]
        except CallError as error:
            answer = [error.name, str(error)]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    bus.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
