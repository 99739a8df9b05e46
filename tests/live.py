# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real service on a private bus, for tests and benchmarks.

    with private_bus() as address:
        async with Daemon(address, state_dir, runtime_dir, "--enable-simulated") as daemon:
            ...                    # it is ready here
            await daemon.kill()    # as kill -9
            await daemon.start()

Everything waits for an event and gives up after DEADLINE; what was started is gone at the end.
"""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

DEADLINE: Final = 60.0
"""Seconds; only what hangs takes so long, however busy the machine is."""

MAX_LOG_BYTES: Final = 2**24
MAX_NOTICE_BYTES: Final = 2**16

# No <limit>: without any, dbus-daemon has those of a system bus, which session.conf would raise.
# Source: dbus-daemon(1), <limit>; dbus bus/config-parser.c, bus_config_parser_new().
BUS_CONFIG: Final = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*" eavesdrop="true"/>
  </policy>
</busconfig>
"""


class Address(str):
    """Where a private bus listens; as a context manager, it takes and sends nothing meanwhile."""

    pid: int

    def of(self, process: subprocess.Popen[bytes]) -> Self:
        self.pid = process.pid
        return self

    def __enter__(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGCONT)


@contextmanager
def private_bus() -> Iterator[Address]:
    """Run a dbus-daemon with a system bus's limits, on which everything is allowed.

    Yields:
        Its address. The socket may be used by every user.
    """
    with tempfile.TemporaryDirectory(prefix="storaged-bus-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        config = directory / "bus.conf"
        config.write_text(BUS_CONFIG.format(socket=directory / "bus"))
        argv = ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address=1"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            try:
                yield Address(_first_line(process)).of(process)
            finally:
                process.kill()


def _first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], DEADLINE)
    line = process.stdout.readline().decode().strip() if readable else ""
    if not line:
        raise RuntimeError("dbus-daemon did not print its address")
    return line


class Daemon:
    """One storaged-connd, which can be ended and started again; an async context manager.

    Attributes:
        notices: what it notified since it was started, such as `READY=1`, the latest 1000.
    """

    def __init__(
        self,
        address: str,
        state_dir: Path,
        runtime_dir: Path,
        *args: str,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Prepare a service on the bus at this address.

        Args:
            args: more of its command line.
            env: more of its environment, such as WATCHDOG_USEC.
            prefix: a command line that executes the one after it, such as `nsenter --net=...`.
        """
        self.notices: deque[str] = deque(maxlen=1000)
        self._argv = [*prefix, sys.executable, "-m", "storaged_conn", "--bus", address]
        self._argv += ["--state-dir", str(state_dir), "--runtime-dir", str(runtime_dir), *args]
        self._env = dict(env or {})
        self._notified = asyncio.Event()
        self._process: Process | None = None
        self._notify: socket.socket | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="storaged-connd-")
        self._log = os.memfd_create("log")

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self._cleanup()
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"the log of the service:\n{self.log}")
        await self._cleanup()

    @property
    def pid(self) -> int:
        """Its process id; it must have been started."""
        return self._running().pid

    @property
    def log(self) -> str:
        """What it has written to stdout and stderr, in all its runs."""
        return os.pread(self._log, MAX_LOG_BYTES, 0).decode(errors="replace")

    async def spawn(self) -> None:
        """Start it without waiting until it is ready."""
        assert self._process is None or self._process.returncode is not None, "it runs already"
        self.notices.clear()
        env = os.environ | self._env | {"NOTIFY_SOCKET": self._listen()}
        self._process = await asyncio.create_subprocess_exec(
            *self._argv, env=env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    async def start(self) -> None:
        """Start it, and return when it says that it is ready."""
        await self.spawn()
        await self.notice("READY=1")

    async def notice(self, line: str) -> None:
        """Wait until it has notified a line since its start.

        Raises:
            RuntimeError: it ended, or said nothing for DEADLINE; the message has its log.
        """
        said = asyncio.create_task(self._said(line))
        ended = asyncio.create_task(self._running().wait())
        tasks = {said, ended}
        try:
            await asyncio.wait(tasks, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
            if line not in self.notices:
                state = f"ended with {ended.result()}" if ended.done() else "still runs"
                raise RuntimeError(f"the service did not say {line}, it {state}:\n{self.log}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self) -> int:
        """End it as systemd does, by SIGTERM; returns its exit status."""
        self._running().terminate()
        return await self.wait()

    async def kill(self) -> None:
        """End it by SIGKILL, where it still runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self.wait()

    async def wait(self) -> int:
        """Wait for its end; returns the exit status, negative where a signal ended it."""
        async with asyncio.timeout(DEADLINE):
            return await self._running().wait()

    def _running(self) -> Process:
        assert self._process is not None, "it was never started"
        return self._process

    async def _said(self, line: str) -> None:
        while line not in self.notices:
            self._notified.clear()
            await self._notified.wait()

    def _listen(self) -> str:
        path = f"{self._scratch.name}/notify"
        if self._notify is None:
            self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._notify.bind(path)
            asyncio.get_running_loop().add_reader(self._notify, self._receive, self._notify)
        return path

    def _receive(self, notify: socket.socket) -> None:
        lines = notify.recv(MAX_NOTICE_BYTES).decode().splitlines()
        self.notices.extend(lines)
        self._notified.set()

    async def _cleanup(self) -> None:
        try:
            await self.kill()
        finally:
            if self._notify is not None:
                asyncio.get_running_loop().remove_reader(self._notify)
                self._notify.close()
            os.close(self._log)
            self._scratch.cleanup()
