# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process costs: the system calls that it makes, and its memory."""

import asyncio
import os
import signal
import tempfile
from asyncio.subprocess import PIPE
from pathlib import Path

from tests.live import DEADLINE


def resident(pid: int) -> float:
    """Give the MiB of memory that a process has. Source: proc(5), /proc/PID/statm."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def idle(pid: int) -> None:
    """Return when a process has nothing left to do, which it must be able to reach."""
    async with asyncio.timeout(DEADLINE):
        while await system_calls(pid, 2.5):  # IPv6 addresses settle for up to 2 s, RFC 4862
            pass


async def system_calls(pid: int, seconds: float) -> dict[str, int]:
    """Count the system calls that a process and its children make in some seconds, by name."""
    with tempfile.NamedTemporaryFile(prefix="strace-") as file:
        argv = ["strace", "-f", "-c", "-S", "calls", "-U", "calls,name", "-o", file.name]
        tracer = await asyncio.create_subprocess_exec(*argv, "-p", str(pid), stderr=PIPE)
        assert tracer.stderr is not None
        try:
            async with asyncio.timeout(DEADLINE):
                line = await tracer.stderr.readline()
            assert b"attached" in line, line
            await asyncio.sleep(seconds)  # this is what is measured
        finally:
            tracer.send_signal(signal.SIGINT)
            await tracer.communicate()
        table = file.read().decode()
    rows = [line.split() for line in table.splitlines()]
    return {row[1]: int(row[0]) for row in rows if len(row) == 2 and row[0].isdigit()}
