# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only place where child processes start.

Why not asyncio's own subprocesses: up to Python 3.11 they start a thread for each child, they wait
for the child when their start is cancelled, and they end only when every process that inherited the
output has closed it, which a daemon left behind by mount(8) may never do. A pidfd in the event loop
has none of that and needs no child watcher.

A child is over in one of three ways. It exits: what it wrote is taken, and what it left running is
left alone. Its deadline comes: its process group is killed, and it is over only when it is gone and
its output is closed by all who had it, because a process in the kernel's uninterruptible sleep
outlives SIGKILL, and its effect may still come; mount(8) dies at once, but the helper that it waits
for may not. Its caller is cancelled: it is killed just so, and the event loop waits for it alone.
"""

import asyncio
import errno
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final
from weakref import WeakKeyDictionary

from storaged_conn.errors import AttemptError, TimedOutError, TroubleError, UnusableError

MAX_CHILDREN: Final = 48
"""Children of one program at once, so that name servers that do not answer hold up no mount. Each
takes three file descriptors of ours (systemd.exec(5), LimitNOFILE=: 1024 by default) and a few MiB;
more at once would not mount 10 000 file systems any faster."""

OUTPUT_LIMIT: Final = 64 * 1024
"""Bytes kept of each stream; tools that are asked for a list print less."""

ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
"""All that a child gets: CVE-2026-53614 lost nosuid to a variable in mount's environment."""

_PIPE_SIZE: Final = 64 * 1024
"""Bytes that a pipe holds at most, so that one read empties it. Source: pipe(7), Pipe capacity."""

_UNUSABLE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC})


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended; `returncode` is negative where a signal ended it."""

    returncode: int
    stdout: str
    stderr: str


async def run(
    argv: Sequence[str], *, deadline: float, limit: int = OUTPUT_LIMIT, stdin: bytes = b""
) -> Result:
    """Run a program to its end, in an environment and a session of its own, without a shell.

    Args:
        argv: the program's absolute path and its arguments.
        deadline: seconds from its start; waiting for one of its MAX_CHILDREN places is not counted.
        limit: bytes kept of each output stream; the rest is read and thrown away.
        stdin: what it reads, such as a secret; at most what a pipe holds.

    Raises:
        TimedOutError: the deadline came; the program was killed and is gone.
        UnusableError: the program is not installed.
        TroubleError: this machine has no room for one more process.
    """
    if not Path(argv[0]).is_absolute():
        raise ValueError(f"{argv[0]}: not an absolute path")
    places = _places(argv[0])
    await places.acquire()
    child = _start(argv, stdin, limit, places.release)
    try:
        async with asyncio.timeout(deadline):
            await child.exited.wait()
        return child.result()
    except TimeoutError:
        child.kill()
        await child.gone.wait()
        name = Path(argv[0]).name
        raise TimedOutError(
            f"{name}: no answer within {deadline:g} s; it was stopped, see that the storage answers"
        ) from None
    finally:
        child.kill()


class _Output:
    """Takes what comes out of a pipe, keeps the beginning, and closes it at its end."""

    def __init__(self, pipe: IO[bytes], limit: int, closed: Callable[[], None]) -> None:
        self._pipe = pipe
        self._limit = limit
        self._closed = closed
        self.kept = bytearray()
        os.set_blocking(pipe.fileno(), False)
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._read)

    @property
    def text(self) -> str:
        return self.kept.decode(errors="replace")

    def finish(self) -> None:
        """Take what is in the pipe now, and nothing that comes later."""
        if not self._pipe.closed:
            self._read()
            self._close()

    def _read(self) -> None:
        try:
            chunk = os.read(self._pipe.fileno(), _PIPE_SIZE)
        except BlockingIOError:
            return
        self.kept += chunk[: self._limit - len(self.kept)]
        if not chunk:
            self._close()

    def _close(self) -> None:
        if not self._pipe.closed:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()
            self._closed()


class _Child:
    """A process that the event loop watches until it and its output are gone."""

    def __init__(
        self, process: subprocess.Popen[bytes], pidfd: int, limit: int, gone: Callable[[], None]
    ) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._pidfd = pidfd
        self._on_gone = gone
        self._open = 3  # the pidfd and the two pipes
        self.exited = asyncio.Event()
        self.gone = asyncio.Event()
        self._stdout = _Output(process.stdout, limit, self._closed)
        self._stderr = _Output(process.stderr, limit, self._closed)
        asyncio.get_running_loop().add_reader(pidfd, self._reap)

    def result(self) -> Result:
        """Say how it exited, and stop listening to what it left running."""
        self._stdout.finish()
        self._stderr.finish()
        return Result(self._process.returncode, self._stdout.text, self._stderr.text)

    def kill(self) -> None:
        """Kill its process group; once it has exited, the number may be somebody else's."""
        if not self.exited.is_set():
            os.killpg(self._process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()  # at once: a pidfd is readable when its process has ended
        self.exited.set()
        self._closed()

    def _closed(self) -> None:
        self._open -= 1
        if not self._open:
            self.gone.set()
            self._on_gone()


def _start(argv: Sequence[str], stdin: bytes, limit: int, gone: Callable[[], None]) -> _Child:
    try:
        process = _spawn(argv, stdin)
        pidfd = _pidfd(process)
    except OSError as error:
        gone()
        raise _refusal(argv[0], error) from error
    return _Child(process, pidfd, limit, gone)


def _spawn(argv: Sequence[str], stdin: bytes) -> subprocess.Popen[bytes]:
    if not stdin:
        return _spawn_with(argv, subprocess.DEVNULL)
    reading, writing = os.pipe()
    try:
        os.write(writing, stdin)  # the pipe takes all of it at once
        os.close(writing)
        return _spawn_with(argv, reading)
    finally:
        os.close(reading)


def _spawn_with(argv: Sequence[str], stdin: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  # a list, never a shell; the callers check what is in it
        argv,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd="/",
        env=ENVIRONMENT,
        start_new_session=True,
        # It outlives us if we are killed, and must not die of that with its next word: iscsiadm
        # would leave its lock, for which all others wait from then on. SIGPIPE stays ignored.
        restore_signals=False,
    )


def _pidfd(process: subprocess.Popen[bytes]) -> int:
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()  # it cannot be watched; subprocess reaps it with the next start
        raise


def _refusal(program: str, error: OSError) -> AttemptError:
    if error.errno in _UNUSABLE:
        return UnusableError(f"{program} cannot be run; install the package that brings it")
    return TroubleError(f"{program} cannot be started: {error.strerror}; see what this host lacks")


_Places = defaultdict[str, asyncio.Semaphore]

_places_of: WeakKeyDictionary[asyncio.AbstractEventLoop, _Places] = WeakKeyDictionary()


def _places(program: str) -> asyncio.Semaphore:
    new = partial(asyncio.Semaphore, MAX_CHILDREN)
    return _places_of.setdefault(asyncio.get_running_loop(), defaultdict(new))[program]
