# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory of the real service is nobody's, in a file or in /proc, and any other program's is."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.live import Daemon, private_bus

WITHOUT = ["setpriv", "--bounding-set=-sys_ptrace"] if os.geteuid() == 0 else []
"""Makes root as weak as any other uid is towards its own processes."""

DUMPED = [*WITHOUT, "prlimit", "--core=unlimited", "env"]
"""Starts what could be dumped, into the directory that is named next."""

OPEN = "import sys; open(sys.argv[1], 'rb')"
STAY = "print('ready', flush=True); import time; time.sleep(60)"


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    argv = [*DUMPED, f"--chdir={tmp_path}", sys.executable, "-c", STAY]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Daemon]:
    directories = (tmp_path / "state", tmp_path / "run")
    prefix = [*DUMPED, f"--chdir={tmp_path}"]
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with private_bus() as address:
        async with Daemon(address, *directories, env=env, prefix=prefix) as daemon:
            yield daemon


def cores(directory: Path) -> list[Path]:
    return list(directory.glob("*core*"))


def can_be_read(pid: int) -> bool:
    """Say whether another process of the same uid gets at the memory; see proc(5)."""
    argv = [*WITHOUT, sys.executable, "-c", OPEN, f"/proc/{pid}/mem"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "PermissionError" in done.stderr
    return done.returncode == 0


@pytest.mark.bus
async def test_no_process_reads_the_memory_of_the_service(
    service: Daemon, plain: subprocess.Popen[bytes]
) -> None:
    assert not can_be_read(service.pid)
    assert can_be_read(plain.pid)


@pytest.mark.bus
async def test_no_core_dump_is_written_of_the_service(service: Daemon, tmp_path: Path) -> None:
    os.kill(service.pid, signal.SIGABRT)
    assert await service.wait() == -signal.SIGABRT
    assert not cores(tmp_path)


def test_what_does_not_forbid_it_is_dumped(plain: subprocess.Popen[bytes]) -> None:
    plain.send_signal(signal.SIGABRT)
    ended = os.waitid(os.P_PID, plain.pid, os.WEXITED | os.WNOWAIT)
    assert ended
    assert ended.si_code == os.CLD_DUMPED
