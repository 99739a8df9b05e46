# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds out whether what is mounted from a server answers: stat(1), in a child that can be killed.

`--cached=never` (AT_STATX_FORCE_SYNC) has the kernel ask the server for the attributes of the root:
that is answered, or not, or with ESTALE. statvfs(3) also asks, but not whether the root is the one
that was mounted: with another directory exported in its place it went well, and opening failed.

The child waits in the kernel for as long as the server is silent; NFS waits can be killed (Linux
2.6.25), others may not. So there is never more than one child for one mount, what could not be
killed is counted, and no more than MAX_STUCK of those take the place of others.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Final

from storaged_conn.errors import AttemptError, TimedOutError
from storaged_conn.system.mountinfo import Mount
from storaged_conn.system.run import MAX_CHILDREN, run

STAT: Final = "/usr/bin/stat"

PATIENCE: Final = 4.0
"""Seconds for an answer: as long as it takes to notice that a server is silent; see config.py."""

MAX_STUCK: Final = MAX_CHILDREN // 3
"""Children that outlived SIGKILL with which no more are started."""

AT_ONCE: Final = MAX_CHILDREN - MAX_STUCK
"""Probes at once."""

Spawn = Callable[[Coroutine[object, object, None]], object]
"""Starts a task that its owner keeps and ends."""


class Verdict(Enum):
    """What a probe found."""

    ANSWERS = auto()
    STALE = auto()
    SILENT = auto()


_WORDS: Final = (
    ("Stale file handle", Verdict.STALE),
    ("Permission denied", Verdict.ANSWERS),
    ("Operation not permitted", Verdict.ANSWERS),
    ("No such file or directory", None),
)
"""How stat(1) says ESTALE, EACCES, EPERM and ENOENT; whatever else it says, such as EIO after the
time-out of a soft mount, is silence. Source: strerror(3)."""


class Probes:
    """All probes that run."""

    def __init__(self, spawn: Spawn) -> None:
        """Nothing runs yet."""
        self._spawn = spawn
        self._places = asyncio.Semaphore(AT_ONCE)
        self._running: dict[object, asyncio.Future[Verdict | None]] = {}

    async def ask(self, mount: Mount) -> Verdict | None:
        """Find out whether a mount answers, by the probe that runs already, if one does.

        Returns:
            None where it cannot be known.
        """
        verdict, joined = await self._ask(mount)
        if joined and verdict is Verdict.SILENT and mount.key not in self._running:
            verdict, _ = await self._ask(mount)  # that one was begun in worse times
        return verdict

    async def _ask(self, mount: Mount) -> tuple[Verdict | None, bool]:
        async with self._places:
            verdict = self._running.get(mount.key)
            joined = verdict is not None
            if verdict is None:
                if len(self._running) >= AT_ONCE + MAX_STUCK:
                    return None, False
                verdict = self._running[mount.key] = asyncio.get_running_loop().create_future()
                self._spawn(self._run(mount, verdict))
            done, _ = await asyncio.wait({verdict}, timeout=PATIENCE)
            return verdict.result() if done else Verdict.SILENT, joined

    async def _run(self, mount: Mount, verdict: asyncio.Future[Verdict | None]) -> None:
        """Run one probe to its very end, for which nobody waits."""
        try:
            verdict.set_result(await look(mount))
        finally:
            verdict.cancel()
            del self._running[mount.key]


async def look(mount: Mount) -> Verdict | None:
    """Ask the server, and see that it is this mount that answers, not one on top of it.

    Returns:
        None where it cannot be known. SILENT comes when the child is gone.
    """
    argv = [STAT, "--cached=never", "--format=%d", "--", mount.target]
    try:
        result = await run(argv, deadline=PATIENCE)
    except TimedOutError:
        return Verdict.SILENT
    except AttemptError:
        return None
    if result.returncode == 0:
        return Verdict.ANSWERS if _device(result.stdout) == mount.device else None
    words = result.stderr.strip()
    return next((verdict for end, verdict in _WORDS if words.endswith(end)), Verdict.SILENT)


def _device(text: str) -> str:
    number = int(text)
    return f"{os.major(number)}:{os.minor(number)}"
