# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program as people and scripts run it, with the real service on a private bus."""

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from storaged_conn.ctl.client import Client
from tests.ctl.program import Control, ended
from tests.live import Daemon

pytestmark = pytest.mark.bus


async def test_a_connection_from_manage_to_unmanage(ctl: Control, service: Daemon) -> None:
    managed = await ctl("manage", "simulated:a", "gold", "--wait", "-o", "latency-ms=10")
    assert managed == (0, "gold: connected\n", "")
    await ctl("manage", "simulated:b", "é b\n", "-o", "fail-first=1000")
    listed = await ctl("list")
    assert (listed.status, listed.err) == (0, "")
    _, gold, other, *_ = listed.out.splitlines()
    assert gold.split() == ["gold", "yes", "connected", "simulated:a", "-", "-"]
    assert other.startswith(r"é b\n  ")
    shown = await ctl("show", "é b\n")
    assert r"ConnectionId      é b\n" in shown.out.splitlines()
    assert await ctl("unmanage", "gold") == (0, "gold: no longer managed\n", "")
    await ctl("unmanage", "é b\n")
    assert "gold" not in (await ctl("list")).out


async def test_every_command_has_json(ctl: Control, service: Daemon) -> None:
    managed = await ctl("--json", "manage", "simulated:a", "é", "-o", "lifetime=runtime", "--wait")
    assert managed.document["State"] == "connected"
    assert managed.document["ConnectionInfo"]["name"] == "a"
    (listed,) = (await ctl("list", "--json")).managed
    assert (listed["ConnectionId"], listed["Lifetime"], listed["Managed"]) == ("é", "runtime", True)
    assert (await ctl("show", "é", "--json")).document == listed
    assert (await ctl("reconnect", "é", "--json")).document == listed
    waited = await ctl("wait", "é", "connected", "--json")
    assert waited.document == {"ConnectionId": "é", "State": "connected"}
    valid = (await ctl("validate", "simulated:b", "--json")).document
    assert valid == {"uri": "simulated:b", "ok": True}
    unmanaged = await ctl("unmanage", "é", "--json")
    assert unmanaged.document == {"ConnectionId": "é", "Managed": False}
    assert (await ctl("list", "--json")).managed == []


async def test_no_connections_are_said_to_a_person(ctl: Control, service: Daemon) -> None:
    status, out, err = await ctl("list")
    assert status == 0
    assert ("no connections" in err) == (len(out.splitlines()) == 1)  # others may mount something


@pytest.mark.parametrize(
    ("argv", "name", "words"),
    [
        (["show", "x"], "NotFound", "'x'"),
        (["unmanage", "x"], "NotFound", "'x'"),
        (["reconnect", "x"], "NotFound", "'x'"),
        (["wait", "x", "connected"], "NotFound", "'x'"),
        (["manage", "simulated:a", "a/b"], "InvalidArgument", "'/'"),
        (["manage", "carrier-pigeon://a", "x"], "NotSupported", "carrier-pigeon"),
        (["manage", "simulated:a", "x", "-o", "colour=red"], "InvalidArgument", "'colour'"),
        (["manage", "simulated:a", "taken"], "AlreadyExists", "'taken'"),
        (["wait", "taken", "flying"], "InvalidArgument", "'flying'"),
        (["wait", "taken", "failed", "--timeout=0.01"], "TimedOut", "0.01"),
        (["discover", "simulated:a"], "NotSupported", "simulated"),
    ],
)
async def test_a_refusal_is_one_line_with_the_services_words(
    ctl: Control, service: Daemon, client: Client, argv: list[str], name: str, words: str
) -> None:
    await client.manage("simulated:taken", "taken", {})
    status, out, err = await ctl(*argv)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("storaged-connctl: ")
    assert words in err
    error = json.loads((await ctl("--json", *argv)).err)
    assert error["error"] == f"org.storage.Connection.Error.{name}"
    assert words in error["message"]


async def test_a_wrong_value_is_wrong_usage_and_changes_nothing(
    ctl: Control, service: Daemon
) -> None:
    status, out, err = await ctl("manage", "simulated:a", "x", "-o", "stall=perhaps")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "option stall: 'perhaps'" in err
    assert (await ctl("list", "--json")).managed == []


async def test_options_have_the_types_that_the_service_names(ctl: Control, service: Daemon) -> None:
    options = ("-o", "latency-ms=7", "-o", "stall=no", "-o", "fail-with=Busy")
    managed = await ctl("--json", "manage", "simulated:a", "x", *options)
    assert (managed.status, managed.err) == (0, "")
    family = await ctl(
        "manage", "posix+ext4:/nowhere", "y", "-o", "mount-options=a,b=c", "-o", "read-only=1"
    )
    assert (family.status, family.err) == (0, "")


async def test_what_would_not_connect_ends_with_1(ctl: Control, service: Daemon) -> None:
    assert await ctl("validate", "simulated:a") == (0, "simulated:a: would connect\n", "")
    argv = ("validate", "simulated:a", "-o", "fail-first=1", "-o", "fail-with=Refused")
    status, out, err = await ctl(*argv)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "simulated:a would not connect (refused: " in err
    told = await ctl("--json", *argv)
    assert (told.status, told.err, told.document["ok"]) == (1, "", False)
    assert told.document["error"] == "org.storage.Connection.Error.Refused"


async def test_a_table_fits_the_terminal_and_has_colours(
    ctl: Control, service: Daemon, client: Client
) -> None:
    await client.manage("simulated:a", "a long id, " * 10, {})
    terminal, stdout = pty.openpty()
    fcntl.ioctl(stdout, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    env = {"TERM": "xterm", "NO_COLOR": "", "COLUMNS": ""}
    async with ctl.started("list", out=stdout, env=env) as process:
        os.close(stdout)
        shown = await asyncio.to_thread(read_all, terminal)
        assert (await ended(process)).status == 0
    plain = [re.sub(r"\x1b\[\d*m", "", one) for one in shown]
    assert max(map(len, plain)) <= 60
    assert re.match("a long id, .*…", plain[1])
    assert "\x1b[1mID\x1b[m" in shown[0]


def read_all(terminal: int) -> list[str]:
    """Read a terminal until nobody has it open any more, which is EIO. Source: pty(7)."""
    shown = b""
    with suppress(OSError):
        while got := os.read(terminal, 4096):
            shown += got
    os.close(terminal)
    return shown.decode().splitlines()


async def test_a_locale_without_the_letters_gets_escapes(
    ctl: Control, service: Daemon, client: Client
) -> None:
    await client.manage("simulated:a", "é-mile", {})
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, out, err = await ctl("list", env=env)
    assert (status, err) == (0, "")
    assert r"\xe9-mile  " in out


async def test_a_service_that_does_not_run_is_said_with_a_way_out(ctl: Control) -> None:
    status, out, err = await ctl("list")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "the service is not running" in err
    assert "systemctl start storaged-conn.service" in err


async def test_a_bus_that_is_not_there_is_said_with_a_way_out(tmp_path: Path) -> None:
    status, out, err = await Control(f"unix:path={tmp_path}/bus")("list")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "cannot connect to bus unix:path=" in err
    assert "--bus names another one" in err


async def test_a_reader_that_goes_away_is_no_error(
    ctl: Control, service: Daemon, client: Client
) -> None:
    await client.manage("simulated:a", "x", {})
    reader, writer = os.pipe()
    os.close(reader)
    try:
        async with ctl.started("list", out=writer) as process:
            assert await ended(process) == (0, "", "")
    finally:
        os.close(writer)


async def test_a_result_that_cannot_be_written_is_an_error(ctl: Control, service: Daemon) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with ctl.started("list", out=full) as process:
            status, _, err = await ended(process)
    finally:
        os.close(full)
    assert status == 1
    assert "cannot write the result: No space left on device" in err
