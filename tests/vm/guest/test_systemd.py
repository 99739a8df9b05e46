# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real systemd mounts as bus/systemd.py expects it to."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from storaged_conn.bus.connection import Bus
from storaged_conn.bus.systemd import SystemdMounter, unit_name
from storaged_conn.errors import RefusedError
from storaged_conn.system.mountinfo import MountTable
from storaged_conn.system.mounting import Mounter, Place
from tests.caller import MAX_MESSAGE
from tests.mounters import MounterContract, mount_id, place
from tests.mounts import cleaned, make_image, mounts_below
from tests.vm.guest.units import SYSTEM_BUS, tool


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "root").mkdir()
    with cleaned(tmp_path):
        yield tmp_path


@pytest.fixture
async def mounter(ground: Path) -> AsyncIterator[SystemdMounter]:
    with closing(await Bus.open(SYSTEM_BUS, max_message=MAX_MESSAGE)) as bus:
        yield SystemdMounter(bus, ground / "words", MountTable())


class TestSystemd(MounterContract):
    pass


def show(where: Place, name: str) -> str:
    unit = unit_name(where.target)
    return tool("systemctl", "show", f"--property={name}", "--value", unit).strip()


async def test_a_mount_is_a_unit_that_goes_with_it(mounter: Mounter, ground: Path) -> None:
    where = place(ground)
    image = str(make_image(ground / "image"))
    await mounter.mount(image, "ext4", (), where)
    assert show(where, "ActiveState") == "active"
    assert show(where, "Transient") == "yes"
    assert "umount.target" in show(where, "Conflicts")
    await mounter.unmount(where, mount_id(where))
    assert show(where, "LoadState") == "not-found"


async def test_a_failed_mount_leaves_no_failed_unit(mounter: Mounter, ground: Path) -> None:
    (ground / "image").touch()
    with pytest.raises(RefusedError):
        await mounter.mount(str(ground / "image"), "ext4", (), place(ground))
    assert show(place(ground), "LoadState") == "not-found"


async def test_it_does_not_wait_for_the_network_and_goes_before_it(
    mounter: Mounter, ground: Path
) -> None:
    """A job that waits as network-online.target does at boot holds up no mount of ours."""
    unit = "storaged-conn-test-late.service"
    hold = ("systemd-run", "--quiet", "--no-block", f"--unit={unit}", "--service-type=oneshot")
    tool(*hold, "--property=Before=network-online.target", "sleep", "infinity")
    try:
        where = place(ground)
        async with asyncio.timeout(30):
            await mounter.mount(str(make_image(ground / "image")), "ext4", ("_netdev",), where)
        assert "network-online.target" in show(where, "After")
        await mounter.unmount(where, mount_id(where))
    finally:
        tool("systemctl", "stop", unit)


async def test_two_mounts_do_not_wait_for_each_other(mounter: Mounter, ground: Path) -> None:
    images = [str(make_image(ground / f"image{number}")) for number in range(3)]
    places = [place(ground, f"point {number}") for number in range(3)]
    async with asyncio.TaskGroup() as tasks:
        for image, where in zip(images, places, strict=True):
            tasks.create_task(mounter.mount(image, "ext4", (), where))
    assert len(mounts_below(ground)) == 3
    async with asyncio.TaskGroup() as tasks:
        for where in places:
            tasks.create_task(mounter.unmount(where, mount_id(where)))
    assert not mounts_below(ground)
