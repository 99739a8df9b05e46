# SPDX-License-Identifier: LGPL-2.1-or-later
"""A caller without any right, in a process of its own: `python -m tests.nobody ADDRESS`.

It reads calls as lines of JSON, [path, interface, member, signature, body], and writes for each
what came of it: [error name or "", error text or result]. It imports as root and connects as
nobody: a source tree may be where only root can read.
"""

import asyncio
import json
import os
import sys

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus, CallError
from storaged_conn.names import SERVICE
from tests.live import DEADLINE

NOBODY = 65534
"""Source: Debian Policy, 9.2.2."""


async def main(address: str) -> None:
    """Call as told, one after the other."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    bus = await Bus.open(address, max_message=2**27)
    while line := await asyncio.to_thread(sys.stdin.readline):
        path, interface, member, signature, body = json.loads(line)
        where = (SERVICE, path, interface, member)
        try:
            answer = ["", wire.plain(await bus.call(where, signature, body, timeout=DEADLINE))]
        except CallError as error:
            answer = [error.name, str(error)]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    bus.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
