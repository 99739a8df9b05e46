# SPDX-License-Identifier: LGPL-2.1-or-later
"""A reboot of the whole machine: what is persistent comes back by itself.

It is shut down while an NFS server is dead that a program waits for, with data on its way there.
"""

import time
from pathlib import Path
from typing import Final

import pytest

from tests.caller import calling
from tests.mounts import make_image
from tests.shell import show as say
from tests.vm.guest.conftest import STATE
from tests.vm.guest.storage import Server
from tests.vm.guest.units import SYSTEM_BUS, show, start, tool

IMAGE: Final = Path("/var/lib/guest/reboot.img")
URI: Final = f"posix+ext4:{IMAGE}"

SERVER: Final = Server(200)
EXPORT: Final = f"nfs://{SERVER.address}/export"
STAMP: Final = STATE / "shutdown"

SHUTDOWN: Final = 90.0 + 60.0
"""Seconds for the dead server, and for all else in an emulated machine.
Source: storaged-conn-nfs(5), Booting and shutting down."""


@pytest.mark.before_reboot
async def test_before_a_reboot_two_are_connected_of_which_one_is_persistent() -> None:
    make_image(IMAGE)
    start()
    async with calling(SYSTEM_BUS) as caller:
        await caller.manage(URI, "stays")
        await caller.manage("file:///srv", "goes", lifetime="runtime")
        found = await caller.until("stays", State="connected")
        (Path(found["MountPoint"]) / "note").write_text("before")
        await caller.until("goes", State="connected")


@pytest.mark.after_reboot
async def test_after_a_reboot_the_persistent_one_is_back_without_being_asked_for() -> None:
    assert show("ActiveState") == "active"
    async with calling(SYSTEM_BUS) as caller:
        found = await caller.until("stays", State="connected")
        assert (Path(found["MountPoint"]) / "note").read_text() == "before"
        assert "goes" not in await caller.managed()
        await caller.unmanage("stays")
        await caller.gone(URI)


@pytest.mark.before_reboot
async def test_before_a_reboot_a_server_dies_that_is_in_use() -> None:
    """It is left as it is: only the reboot ends it."""
    SERVER.__enter__()
    (SERVER.export("/export") / "file").write_text("x")
    SERVER.start()
    async with calling(SYSTEM_BUS) as caller:
        await caller.manage(EXPORT, "nfs")
        place = (await caller.until("nfs", State="connected"))["MountPoint"]
        tool("dd", "if=/dev/zero", f"of={place}/dirty", "bs=64k", "count=16", "status=none")
        SERVER.link(up=False)
        tool("systemd-run", "--quiet", "--unit=waits-for-nfs", "cat", f"{place}/file")
        await caller.until("nfs", State="unresponsive")
    STAMP.write_text(str(time.time()))


@pytest.mark.after_reboot
def test_a_dead_server_did_not_hold_up_the_shutdown_for_long() -> None:
    up = float(Path("/proc/uptime").read_text().split()[0])
    seconds = time.time() - up - float(STAMP.read_text())
    say(f"the shutdown took {seconds:.0f} s")
    assert seconds < SHUTDOWN


@pytest.mark.after_reboot
async def test_a_server_that_comes_after_the_reboot_is_connected_though_nothing_is_online() -> None:
    """A job that waits, as network-online.target does for a network, holds up nothing."""
    tool("systemctl", "stop", "network-online.target")  # open-iscsi.service has wanted it
    hold = ("systemd-run", "--quiet", "--no-block", "--unit=late", "--service-type=oneshot")
    tool(*hold, "--property=Before=network-online.target", "sleep", "infinity")
    tool("systemctl", "start", "--no-block", "network-online.target")
    async with calling(SYSTEM_BUS) as caller:
        await caller.until("nfs", State="waiting")
        with SERVER:
            (SERVER.export("/export") / "file").write_text("after")
            SERVER.start()
            found = await caller.until("nfs", State="connected")
            assert (Path(found["MountPoint"]) / "file").read_text() == "after"
            assert "inactive" in tool("systemctl", "show", "-PActiveState", "network-online.target")
            await caller.unmanage("nfs")
            await caller.gone(EXPORT)
    tool("systemctl", "stop", "late")
