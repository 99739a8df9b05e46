# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from storaged_conn.errors import TimedOutError, TroubleError, UnusableError
from storaged_conn.system.run import ENVIRONMENT, MAX_CHILDREN, OUTPUT_LIMIT, Result, run

PATIENCE = 20.0


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


async def shell(script: str, *arguments: str | Path, deadline: float = PATIENCE) -> Result:
    return await run(["/bin/sh", "-c", script, "sh", *map(str, arguments)], deadline=deadline)


async def line_from(fifo: Path) -> str:
    return await asyncio.to_thread(fifo.read_text)


async def is_gone(pid: int) -> None:
    """Wait until a process that may not be our child has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), PATIENCE)
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


async def test_output_and_status_come_back() -> None:
    assert await shell("echo out; echo err >&2; exit 3") == Result(3, "out\n", "err\n")


async def test_a_signal_is_a_negative_status() -> None:
    assert (await shell("kill -TERM $$")).returncode == -15


OUTSPOKEN = """
echo $$ >$1/begun
read -r _ <$1/go
echo out
echo err >&2
echo ended >$1/result
"""

KILLED = """
import asyncio, sys
from storaged_conn.system.run import run
asyncio.run(run(["/bin/sh", "-c", sys.argv[1], "sh", sys.argv[2]], deadline=60))
"""


async def test_a_child_that_has_something_to_say_ends_well_though_we_were_killed(
    tmp_path: Path,
) -> None:
    for name in ("begun", "go"):
        os.mkfifo(tmp_path / name)
    argv = (sys.executable, "-c", KILLED, OUTSPOKEN, str(tmp_path))
    us = await asyncio.create_subprocess_exec(*argv)
    child = int(await line_from(tmp_path / "begun"))
    us.kill()
    await us.wait()
    (tmp_path / "go").write_text("go\n")
    await is_gone(child)
    assert (tmp_path / "result").read_text() == "ended\n"


async def test_arguments_never_meet_a_shell() -> None:
    argument = "$(id) `id`; id > /tmp/x | \"'*\n"
    result = await run(["/usr/bin/printf", "%s", argument], deadline=PATIENCE)
    assert result == Result(0, argument, "")


async def test_the_environment_is_built_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBMOUNT_FORCE_MOUNT2", "always")
    result = await run(["/usr/bin/env"], deadline=PATIENCE)
    assert sorted(result.stdout.splitlines()) == sorted(f"{k}={v}" for k, v in ENVIRONMENT.items())


async def test_a_child_has_a_session_and_a_directory_of_its_own_and_no_input() -> None:
    result = await shell("cat; pwd; cat /proc/$$/stat")
    directory, stat = result.stdout.splitlines()
    pid, _name, _state, _ppid, group, session, terminal, *_ = stat.split()
    assert (directory, group, session, terminal) == ("/", pid, pid, "0")


async def test_a_child_inherits_no_file_but_its_three() -> None:
    leaked = os.dup2(0, 50, inheritable=True)
    try:
        result = await run(["/bin/ls", "/proc/self/fd"], deadline=PATIENCE)
    finally:
        os.close(leaked)
    assert result.stdout.split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


async def test_a_relative_program_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="mount: not an absolute path"):
        await run(["mount"], deadline=PATIENCE)


async def test_a_missing_program_is_named_and_said_to_be_installed(tmp_path: Path) -> None:
    missing = str(tmp_path / "mount.nfs")
    with pytest.raises(UnusableError, match=f"^{missing} cannot be run; install the package"):
        await run([missing, "secret"], deadline=PATIENCE)


async def test_a_file_that_is_no_program_cannot_be_run(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.touch(0o644)
    with pytest.raises(UnusableError, match="cannot be run"):
        await run([str(text)], deadline=PATIENCE)


async def test_a_host_that_cannot_start_a_process_may_do_so_later() -> None:
    with pytest.raises(TroubleError, match=r"^/bin/true cannot be started: Argument list"):
        await run(["/bin/true", "x" * 1_000_000], deadline=PATIENCE)


async def test_output_beyond_the_limit_is_thrown_away_and_the_child_still_ends() -> None:
    result = await shell("head -c 3000000 /dev/zero | tr '\\0' o; head -c 70000 /dev/zero >&2")
    assert result == Result(0, "o" * OUTPUT_LIMIT, "\0" * OUTPUT_LIMIT)


async def test_a_smaller_limit_is_kept() -> None:
    assert (await run(["/bin/echo", "12345"], deadline=PATIENCE, limit=3)).stdout == "123"


async def test_output_that_is_not_text_is_replaced() -> None:
    assert (await shell("printf 'a\\377b'")).stdout == "a\N{REPLACEMENT CHARACTER}b"


async def test_a_daemon_left_behind_with_our_output_is_not_waited_for(fifo: Path) -> None:
    script = 'exec 3<>"$1"; setsid sh -c "read line <&3" & echo done'
    assert await shell(script, fifo) == Result(0, "done\n", "")
    await asyncio.to_thread(fifo.write_text, "end\n")


async def test_at_the_deadline_the_whole_group_is_killed(fifo: Path) -> None:
    script = 'sleep 100 & echo $$ $! >"$1"; wait'
    task = asyncio.create_task(shell(script, fifo, deadline=0.5))
    pids = [int(pid) for pid in (await line_from(fifo)).split()]
    with pytest.raises(TimedOutError, match=r"^sh: no answer within 0\.5 s; it was stopped"):
        await task
    for pid in pids:
        await is_gone(pid)


async def test_a_message_names_the_program_and_none_of_its_arguments() -> None:
    with pytest.raises(TimedOutError) as caught:
        await run(["/bin/sleep", "1234567"], deadline=0.01)
    assert str(caught.value).startswith("sleep: ")
    assert "1234567" not in str(caught.value)


async def test_it_is_over_only_when_all_that_had_its_output_are_gone(fifo: Path) -> None:
    # What leaves the group is not killed with it: the part of a helper that no SIGKILL reaches.
    script = 'exec 3<>"$1"; setsid sh -c "read line <&3" & kill -STOP $$'
    task = asyncio.create_task(shell(script, fifo, deadline=0.5))
    await asyncio.wait({task}, timeout=0.8)
    assert not task.done()
    await asyncio.to_thread(fifo.write_text, "end\n")
    with pytest.raises(TimedOutError):
        await asyncio.wait_for(task, PATIENCE)


async def test_cancelled_it_is_killed_at_once_and_reaped_by_the_loop(fifo: Path) -> None:
    task = asyncio.create_task(shell('echo $$ >"$1"; exec sleep 100', fifo))
    pid = int(await line_from(fifo))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await is_gone(pid)
    assert pid not in children()


def children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


async def test_no_thread_is_started_for_a_child(fifo: Path) -> None:
    before = threading.active_count()
    task = asyncio.create_task(shell('read line <"$1"', fifo))
    await asyncio.sleep(0)  # lets it start
    assert children()
    assert threading.active_count() == before
    with fifo.open("w") as writer:
        writer.write("end\n")
    assert (await task).returncode == 0


async def test_children_of_one_program_beyond_the_limit_wait_and_their_deadline_waits_too(
    tmp_path: Path,
) -> None:
    gates = [tmp_path / str(number) for number in range(MAX_CHILDREN + 1)]
    for gate in gates:
        os.mkfifo(gate)
    with ExitStack() as stack:
        for gate in gates:
            stack.enter_context(gate.open("r+b", buffering=0))
        tasks = [asyncio.create_task(run(["/bin/cat", str(gate)], deadline=60)) for gate in gates]
        last = tasks.pop()
        tasks.append(asyncio.create_task(run(["/bin/cat", "/dev/null"], deadline=0.9)))
        await asyncio.wait(tasks, timeout=1)
        assert len(children()) == MAX_CHILDREN
        assert (await run(["/bin/true"], deadline=PATIENCE)).returncode == 0
        tasks[0].cancel()
        tasks[1].cancel()
        assert (await asyncio.wait_for(tasks[-1], PATIENCE)).returncode == 0
        for task in (*tasks, last):
            task.cancel()
        await asyncio.gather(*tasks, last, return_exceptions=True)
    for pid in children():
        await is_gone(pid)


async def test_a_place_comes_back_however_a_child_ended(tmp_path: Path) -> None:
    for _ in range(MAX_CHILDREN + 1):
        with pytest.raises(UnusableError):
            await run([str(tmp_path / "missing")], deadline=PATIENCE)
    assert (await run(["/bin/true"], deadline=PATIENCE)).returncode == 0


def test_each_event_loop_has_places_of_its_own() -> None:
    async def crowd() -> list[Result]:
        return await asyncio.gather(
            *(run(["/bin/true"], deadline=PATIENCE) for _ in range(MAX_CHILDREN + 2))
        )

    for _ in range(2):
        assert {result.returncode for result in asyncio.run(crowd())} == {0}


@pytest.fixture
def freezable(tmp_path: Path) -> Iterator[Path]:
    """A file system whose writers sleep beyond the reach of SIGKILL while it is frozen."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a loop device")
    image, directory = tmp_path / "image", tmp_path / "directory"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    with ExitStack() as stack:
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, directory], check=True)
        stack.callback(lambda: subprocess.run(["umount", directory], check=True))
        subprocess.run(["fsfreeze", "-f", directory], check=True)
        stack.callback(thaw, directory)
        yield directory


def thaw(directory: Path) -> None:
    subprocess.run(["fsfreeze", "-u", directory], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.root
async def test_a_child_that_cannot_be_killed_is_waited_for(freezable: Path) -> None:
    task = asyncio.create_task(run(["/bin/touch", str(freezable / "x")], deadline=1))
    await asyncio.wait({task}, timeout=1.5)
    assert not task.done()
    thaw(freezable)
    with pytest.raises(TimedOutError):
        await asyncio.wait_for(task, PATIENCE)


@pytest.mark.root
async def test_a_helper_that_cannot_be_killed_is_waited_for_too(freezable: Path) -> None:
    task = asyncio.create_task(shell('touch "$1/x"; true', freezable, deadline=1))
    await asyncio.wait({task}, timeout=1.5)
    assert not task.done()
    thaw(freezable)
    with pytest.raises(TimedOutError):
        await asyncio.wait_for(task, PATIENCE)


@pytest.mark.root
async def test_cancellation_does_not_wait_for_a_child_that_cannot_be_killed(
    freezable: Path,
) -> None:
    task = asyncio.create_task(run(["/bin/touch", str(freezable / "x")], deadline=PATIENCE))
    await asyncio.sleep(0)  # lets it start
    (pid,) = children()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 1)
    assert pid in children()
    thaw(freezable)
    await is_gone(pid)
