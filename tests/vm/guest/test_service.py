# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service under systemd, on the system bus, installed as its users have it."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from storaged_conn.front.actions import Action
from storaged_conn.names import CONNECTION, MANAGER, ROOT, SERVICE, object_path
from tests.caller import Caller, refused
from tests.mounts import make_image
from tests.shell import Shell
from tests.vm.guest.units import UNIT, owners, restarted, seconds, show, start, tool

NOBODY: Final = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")

STOPS: Final = 2.0
"""Seconds in which SIGTERM is obeyed."""

WATCHDOG: Final = 5
"""Seconds, in place of the unit's 30: nobody waits so long, and the guest is slow."""

RULE: Final = """
polkit.addRule(function(action, subject) {
    if (action.id == "org.storage.connection.control" && subject.user == "nobody"
        && action.lookup("connection_id") == "allowed" && action.lookup("scheme") == "file")
        return polkit.Result.YES;
});
"""

BUSCTL: Final = ("busctl", "call", SERVICE, ROOT, MANAGER)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


@pytest.fixture
def watchdog() -> Iterator[None]:
    """Have systemd lose its patience sooner, and wait less for what its SIGABRT does not end."""
    place = Path(f"/run/systemd/system/{UNIT}.d/watchdog.conf")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"[Service]\nWatchdogSec={WATCHDOG}\nTimeoutAbortSec=1\n")
    tool("systemctl", "daemon-reload")
    tool("systemctl", "restart", UNIT)
    yield
    place.unlink()
    tool("systemctl", "daemon-reload")


@pytest.fixture
def rule() -> Iterator[None]:
    """Have polkit let nobody reconnect one connection. Source: polkit(8)."""
    place = Path("/etc/polkit-1/rules.d/10-test.rules")
    place.write_text(RULE)
    place.chmod(0o644)
    tool("systemctl", "restart", "polkit")
    yield
    place.unlink()
    tool("systemctl", "restart", "polkit")


def host_mounts(source: Path) -> list[str]:
    """Give where an image is mounted for the whole machine. Source: proc(5), mountinfo."""
    loop = tool("losetup", "--noheadings", "--output=NAME", "--associated", source).split()
    lines = [line.split() for line in Path("/proc/1/mountinfo").read_text().splitlines()]
    return [words[4] for words in lines if words[words.index("-") + 2] in loop]


def test_the_unit_says_itself_when_it_is_ready() -> None:
    tool("systemctl", "restart", UNIT)
    assert (show("Type"), show("ActiveState"), show("SubState")) == ("notify", "active", "running")
    assert show("StatusText") == "no connections"
    assert show("UnitFileState") == "enabled"
    assert os.readlink(f"/proc/{show('MainPID')}/exe").startswith("/usr/bin/python3")
    assert not tool("systemctl", "--failed", "--plain", "--no-legend")


async def test_root_manages_with_busctl_alone(caller: Caller, tmp_path: Path) -> None:
    said = tool(*BUSCTL, "Manage", "ssa{sv}", f"file://{tmp_path}", "my data", "0")
    assert said == f'o "{ROOT}/my_20data"\n'
    await caller.until("my data", State="connected")
    assert '"my data" 4 "connected" b true' in tool(*BUSCTL, "List")
    assert not tool(*BUSCTL, "Unmanage", "sa{sv}", "my data", "0")
    assert "my data" not in await caller.listed()


async def test_nobody_reads_and_is_refused_to_write(
    caller: Caller, shell: Shell, tmp_path: Path
) -> None:
    await caller.manage(f"file://{tmp_path}", "mine")
    assert '"mine"' in tool(*NOBODY, *BUSCTL, "List")
    for method in (
        ("Manage", "ssa{sv}", "file:///srv", "theirs", "0"),
        ("Unmanage", "sa{sv}", "mine", "0"),
        ("Validate", "sa{sv}", "file:///srv", "0"),
    ):
        said = await shell.run(*NOBODY, *BUSCTL, *method, status=1)
        assert "needs an administrator's password, and nothing can ask for it" in said, said
        silent = ("busctl", "--allow-interactive-authorization=no", *BUSCTL[1:])
        said = await shell.run(*NOBODY, *silent, *method, status=1)
        assert "this call forbids to ask for it" in said.replace("\n", " "), said
    assert set(await caller.managed()) == {"mine"}


async def test_a_rule_of_polkit_decides_about_one_connection(
    caller: Caller, shell: Shell, rule: None, tmp_path: Path
) -> None:
    for cid in ("mine", "allowed"):
        await caller.manage(f"file://{tmp_path}", cid)
    command = (*NOBODY, "busctl", "call", SERVICE)
    reconnect = (CONNECTION, "Reconnect", "a{sv}", "0")
    await shell.run(*command, object_path("allowed"), *reconnect)
    said = await shell.run(*command, object_path("mine"), *reconnect, status=1)
    assert "root" in said


def test_polkit_knows_the_actions() -> None:
    assert set(Action) <= set(tool("pkaction").split())


def test_a_call_starts_the_service() -> None:
    tool("systemctl", "stop", UNIT)
    assert show("ActiveState") == "inactive"
    assert tool(*BUSCTL, "List") == "a{sa{sv}} 0\n"
    start()
    assert show("ActiveState") == "active"


async def test_an_image_is_mounted_for_the_whole_machine(caller: Caller, image: Path) -> None:
    await caller.manage(f"posix+ext4:{image}", "disk")
    found = await caller.until("disk", State="connected")
    assert host_mounts(image) == [found["MountPoint"]]
    (Path(found["MountPoint"]) / "seen").write_text("by us")
    await caller.unmanage("disk")
    await caller.gone(f"posix+ext4:{image}")
    assert not host_mounts(image)


async def test_after_a_kill_systemd_restarts_it_and_nothing_is_lost(
    caller: Caller, image: Path
) -> None:
    await caller.manage(f"posix+ext4:{image}", "disk")
    place = (await caller.until("disk", State="connected"))["MountPoint"]
    device = os.stat(place).st_dev
    async with owners() as changes:
        with (Path(place) / "open").open("w") as file:
            os.kill(int(show("MainPID")), signal.SIGKILL)
            await restarted(changes)
            file.write("and written to all the while")
    found = await caller.until("disk", State="connected")
    assert (found["MountPoint"], os.stat(place).st_dev) == (place, device)
    assert host_mounts(image) == [place]
    assert found["Reconnects"] == 0


async def test_it_stops_within_two_seconds_and_leaves_what_is_connected(
    caller: Caller, image: Path
) -> None:
    await caller.manage(f"posix+ext4:{image}", "disk")
    place = (await caller.until("disk", State="connected"))["MountPoint"]
    await asyncio.to_thread(tool, "systemctl", "stop", UNIT)
    assert show("Result") == "success"
    assert seconds("InactiveEnter") - seconds("ActiveExit") < STOPS
    assert host_mounts(image) == [place]
    start()
    await caller.until("disk", State="connected")


async def test_the_watchdog_is_fed_and_restarts_what_hangs(
    caller: Caller, watchdog: None, tmp_path: Path
) -> None:
    await caller.manage(f"file://{tmp_path}", "data")
    pid, began = show("MainPID"), seconds("Watchdog")
    with refused("TimedOut"):
        await caller.wait_for("data", "failed", 1500000 * WATCHDOG)
    assert show("MainPID") == pid
    assert seconds("Watchdog") > began + WATCHDOG
    async with owners() as changes:
        os.kill(int(pid), signal.SIGSTOP)
        await restarted(changes)
    assert show("MainPID") != pid
    await caller.until("data", State="connected")
