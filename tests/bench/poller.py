# SPDX-License-Identifier: LGPL-2.1-or-later
"""What this service replaces: monitors that ask a server again and again whether it answers.

ADDRESS PORT INTERVAL COUNT: so many monitors, which ask every INTERVAL seconds, evenly spread.
A line is written whenever one learns something: the monotonic time, and `up` or `down`.
"""

import asyncio
import sys
from contextlib import suppress
from time import monotonic

PATIENCE = 2.0
"""Seconds to wait for an answer."""


async def answers(address: str, port: int) -> bool:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(address, port)
        writer.close()
        return True
    return False


async def monitor(address: str, port: int, interval: float, delay: float) -> None:
    loop = asyncio.get_running_loop()
    known, due = True, loop.time() + delay
    while True:
        await asyncio.sleep(due - loop.time())
        due += interval
        was, known = known, await answers(address, port)
        if known is not was:
            sys.stdout.write(f"{monotonic():.6f} {'up' if known else 'down'}\n")
            sys.stdout.flush()


async def main(address: str, port: int, interval: float, count: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(monitor(address, port, interval, interval * number / count))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
