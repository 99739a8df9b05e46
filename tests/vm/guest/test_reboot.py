# SPDX-License-Identifier: LGPL-2.1-or-later
"""A reboot of the whole machine: what is persistent comes back by itself."""

from pathlib import Path
from typing import Final

import pytest

from tests.caller import calling
from tests.mounts import make_image
from tests.vm.guest.units import SYSTEM_BUS, show, start

IMAGE: Final = Path("/var/lib/guest/reboot.img")
URI: Final = f"posix+ext4:{IMAGE}"


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
        assert set(await caller.managed()) == {"stays"}
        await caller.unmanage("stays")
        await caller.gone(URI)
