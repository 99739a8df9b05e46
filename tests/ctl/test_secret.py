# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secrets as people and scripts give them, with the real service on a private bus."""

import asyncio
import os
import pty
import select
import signal
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from storaged_conn.core.secret import Secret
from storaged_conn.ctl.client import Failure
from storaged_conn.ctl.secret import ENOUGH, read
from tests.ctl.program import Control, ended
from tests.live import DEADLINE, Daemon
from tests.stores import records

CANARY = "canary-hunter2"


def stored(tmp_path: Path) -> dict[str, object]:
    found = records(tmp_path / "state" / "connections.db")
    return {one.cid: one.options.get("password") for one in found}


# from a file


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"x", b"x"),
        (b"x\n", b"x"),
        (b"x\n\n", b"x\n"),
        (b"x\r\n", b"x\r"),
        (b"\0\xff", b"\0\xff"),
        (b"", b""),
        (b"x" * 2 * ENOUGH, b"x" * ENOUGH),
    ],
)
def test_a_file_gives_its_bytes_without_one_newline(
    tmp_path: Path, content: bytes, value: bytes
) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read([("password", f"{tmp_path}/file")]) == {"password": ("ay", value)}


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([("password", f"/nowhere/{CANARY}")], "password: its file cannot be read: No such file"),
        ([("password", "/")], "password: its file cannot be read: Is a directory"),
        ([("password", CANARY), ("password", "b")], "password is given 2 times; give it once"),
        ([("password", "-"), ("key", "-")], "standard input can give one secret"),
    ],
)
def test_what_cannot_be_read_is_named_without_the_file(
    sources: list[tuple[str, str]], words: str
) -> None:
    with pytest.raises(Failure, match=words) as caught:
        read(sources)
    assert CANARY not in str(caught.value)


# with the service

pytestmark = pytest.mark.bus


async def test_secrets_reach_the_service_from_files_and_from_standard_input(
    ctl: Control, service: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{CANARY}\n")
    by_file = await ctl("manage", "simulated:a", "a", "--wait", "--secret", f"password={file}")
    assert by_file == (0, "a: connected\n", "")
    by_input = await ctl("manage", "--secret=password=-", "simulated:b", "b", given=b"other\n")
    assert by_input.status == 0, by_input.err
    for command in (["list"], ["show", "a"], ["show", "a", "--json"], ["list", "--json"]):
        assert CANARY not in (await ctl(*command)).out
    await service.stop()
    assert stored(tmp_path) == {"a": Secret(CANARY.encode()), "b": Secret(b"other")}


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["-o", f"password={CANARY}"], 2, "option password is a secret, and everybody can see"),
        (["--secret", "password"], 2, "cannot be asked for without a terminal; give password=FILE"),
        (["--secret", "password=-"], 1, "options: 'password' is empty"),
        (["--secret", f"password=/{CANARY}"], 1, "its file cannot be read"),
        (["--secret", "fail-with=-"], 1, "options: 'fail-with' must be of type s, not ay"),
        (["--secret", "passwort=-"], 1, "options: 'passwort' is unknown to simulated"),
        (["-o", "latency-ms=1", "--secret", "latency-ms=-"], 2, "given by -o and by --secret"),
    ],
)
async def test_a_refusal_is_one_line_without_the_secret(
    ctl: Control, service: Daemon, argv: list[str], status: int, words: str
) -> None:
    result = await ctl("manage", "simulated:a", "x", *argv, given=b"")
    assert (result.status, result.out, result.err.count("\n")) == (status, "", 1)
    assert words in result.err
    assert CANARY not in result.err
    assert (await ctl("list", "--json")).managed == []


async def test_validate_and_discover_take_secrets_too(ctl: Control, service: Daemon) -> None:
    valid = await ctl("validate", "simulated:a", "--secret=password=-", given=CANARY.encode())
    assert valid == (0, "simulated:a: would connect\n", "")
    result = await ctl("discover", "simulated:a", "--secret=password=-", given=CANARY.encode())
    assert "there is nothing to discover" in result.err


# at a terminal


class Terminal(NamedTuple):
    """A program at a terminal, from the side of the person."""

    process: asyncio.subprocess.Process
    person: int
    program: int

    def shows(self, end: bytes) -> bytes:
        """Read what the terminal shows, up to what it ends with."""
        shown = b""
        while not shown.endswith(end):
            assert select.select([self.person], [], [], DEADLINE)[0], shown
            shown += os.read(self.person, 4096)
        return shown

    def types(self, text: str) -> None:
        """Type."""
        os.write(self.person, text.encode())

    @property
    def echoes(self) -> bool:
        """Whether it shows what is typed."""
        return bool(termios.tcgetattr(self.program)[3] & termios.ECHO)


@asynccontextmanager
async def at_terminal(ctl: Control, *argv: str) -> AsyncIterator[Terminal]:
    """Run a command with a terminal of its own, whose signals reach it. Source: setsid(1)."""
    person, program = pty.openpty()
    prefix = ("setsid", "--ctty", "--wait")
    try:
        async with ctl.started(*argv, source=program, prefix=prefix) as process:
            yield Terminal(process, person, program)
    finally:
        os.close(person)
        os.close(program)


async def test_a_person_is_asked_and_nothing_is_echoed(
    ctl: Control, service: Daemon, tmp_path: Path
) -> None:
    async with at_terminal(ctl, "manage", "simulated:a", "a", "--secret=password") as terminal:
        assert await asyncio.to_thread(terminal.shows, b": ") == b"password: "
        assert not terminal.echoes
        terminal.types(f"{CANARY}\n")
        result = await ended(terminal.process)
        assert (result.status, result.err) == (0, "")
        assert terminal.echoes
        assert await asyncio.to_thread(terminal.shows, b"\n") == b"\r\n"
    await service.stop()
    assert stored(tmp_path) == {"a": Secret(CANARY.encode())}


async def test_an_interrupted_question_leaves_the_terminal_as_it_was(
    ctl: Control, service: Daemon
) -> None:
    async with at_terminal(ctl, "manage", "simulated:a", "a", "--secret=password") as terminal:
        await asyncio.to_thread(terminal.shows, b": ")
        terminal.types("half of it\x03")
        result = await ended(terminal.process)
        assert (result.status, result.out, result.err) == (-signal.SIGINT, "", "")
        assert terminal.echoes
    assert (await ctl("list", "--json")).managed == []
