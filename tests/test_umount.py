# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real mounts, and what others do to them behind the service's back."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storaged_conn.front.objects import PAUSE
from storaged_conn.system.mountinfo import Mount
from tests.caller import Service, refused, serving
from tests.mounts import cleaned, make_image, mounts_below, needs_root, tool

pytestmark = [needs_root, pytest.mark.root, pytest.mark.bus]

TIMES = 50
"""Source: the issue Spine."""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    with cleaned(tmp_path):
        async with serving(tmp_path) as service:
            yield service


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


def mounted(service: Service) -> Mount:
    """Give the only mount that there is in the directory of the test."""
    (mount,) = mounts_below(service.directory)
    return mount


@contextmanager
def somebody_in(place: Path | str) -> Iterator[None]:
    """Have a process work in a directory; it waits for an input that never comes."""
    with subprocess.Popen(["cat"], cwd=place, stdin=subprocess.PIPE):
        yield


async def test_what_is_unmounted_is_mounted_again_and_told(service: Service, image: Path) -> None:
    await service.caller.manage(f"posix+ext4:{image}", "disk")
    place = (await service.caller.until("disk", State="connected"))["MountPoint"]
    for times in range(1, TIMES + 1):
        tool("umount", place)
        await service.caller.until("disk", State="connected", Reconnects=times)
        assert mounted(service).target == place
    await service.caller.told("disk")


async def test_a_loss_and_its_end_are_told(service: Service, image: Path) -> None:
    await service.caller.manage(f"posix+ext4:{image}", "disk")
    place = (await service.caller.until("disk", State="connected"))["MountPoint"]
    await service.caller.told("disk")
    await asyncio.sleep(2 * PAUSE)  # so that the next signal is not held back
    service.caller.heard.clear()
    tool("umount", place)
    await service.caller.until("disk", State="connected", Reconnects=1)
    await service.caller.hears_change("disk", State="connected")
    first, *_, last = service.caller.changes("disk")
    assert {name: first[name] for name in ("State", "StateReason", "Connected", "MountPoint")} == {
        "State": "connecting",
        "StateReason": "lost",
        "Connected": False,
        "MountPoint": "",
    }
    assert {name: last[name] for name in ("State", "StateReason", "Connected", "MountPoint")} == {
        "State": "connected",
        "StateReason": "",
        "Connected": True,
        "MountPoint": place,
    }


async def test_what_others_mounted_is_listed_adopted_and_left_mounted(
    service: Service, image: Path
) -> None:
    caller, uri = service.caller, f"posix+ext4:{image}"
    place = service.directory / "elsewhere"
    place.mkdir()
    tool("mount", image, place)
    mount = mounted(service)

    foreign = await caller.unmanaged(uri, State="connected", MountPoint=str(place))
    assert foreign == f"unmanaged/mount-{mount.id}"
    for call in (caller.unmanage, caller.reconnect):
        with refused("NotFound"):
            await call(foreign)

    await caller.manage(uri, "mine")
    found = await caller.until("mine", State="connected")
    assert found["MountPoint"] == str(place)
    assert found["Devices"][0].startswith("/dev/loop")
    await caller.hears_removed(foreign)
    assert not [one for one in await caller.objects() if not one["Managed"]]

    await caller.unmanage("mine")
    assert await caller.unmanaged(uri) == foreign
    assert mounted(service) == mount
    tool("umount", place)
    await caller.gone(uri)


async def test_what_is_in_use_stays_until_it_is_not(service: Service, image: Path) -> None:
    caller, uri = service.caller, f"posix+ext4:{image}"
    await caller.manage(uri, "disk")
    place = (await caller.until("disk", State="connected"))["MountPoint"]
    with somebody_in(place):
        await caller.unmanage("disk")
        foreign = await caller.unmanaged(uri, State="disconnecting", StateReason="busy")
        found = await caller.properties(foreign)
        assert found["LastErrorName"] == "org.storage.Connection.Error.Busy"
        assert "target is busy" in found["LastErrorMessage"]
        assert mounted(service).target == place
    await caller.gone(uri)
    assert not mounts_below(service.directory)


async def test_what_is_wanted_again_while_it_is_busy_is_connected(
    service: Service, image: Path
) -> None:
    caller, uri = service.caller, f"posix+ext4:{image}"
    await caller.manage(uri, "disk")
    place = (await caller.until("disk", State="connected"))["MountPoint"]
    mount = mounted(service)
    with somebody_in(place):
        await caller.unmanage("disk")
        await caller.unmanaged(uri, State="disconnecting", StateReason="busy")
        await caller.manage(uri, "again")
        await caller.until("again", State="connected", MountPoint=place, LastError=0)
        assert mounted(service) == mount
    await caller.unmanage("again")
    await caller.gone(uri)


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("mountpoint", ["", "chosen"])
async def test_the_end_of_the_service_is_not_the_end_of_a_mount(
    service: Service, image: Path, end: str, mountpoint: str
) -> None:
    caller, uri = service.caller, f"posix+ext4:{image}"
    options = {"mountpoint": str(service.directory / mountpoint)} if mountpoint else {}
    for cid in ("one", "two"):
        await caller.manage(uri, cid, **options)
        await caller.until(cid, State="connected")
    mount = mounted(service)
    for _ in range(2):
        await getattr(service.daemon, end)()
        assert mounted(service) == mount
        await service.daemon.start()
        for cid, other in (("one", "two"), ("two", "one")):
            await caller.until(cid, State="connected", SharedWith=[other], MountPoint=mount.target)
        assert mounted(service) == mount
    await caller.unmanage("one")
    await caller.until("two", State="connected", SharedWith=[])
    assert mounted(service) == mount
    await caller.unmanage("two")
    await caller.gone(uri)
    assert not mounts_below(service.directory)  # it still knew that this was its own


async def test_what_is_unmounted_while_the_service_is_down_is_mounted_at_its_start(
    service: Service, image: Path
) -> None:
    await service.caller.manage(f"posix+ext4:{image}", "disk")
    place = (await service.caller.until("disk", State="connected"))["MountPoint"]
    await service.daemon.kill()
    tool("umount", place)
    await service.daemon.start()
    await service.caller.until("disk", State="connected", MountPoint=place)
    assert mounted(service).target == place


async def test_what_others_mounted_stays_theirs_through_a_restart(
    service: Service, image: Path
) -> None:
    place = service.directory / "elsewhere"
    place.mkdir()
    tool("mount", image, place)
    await service.caller.manage(f"posix+ext4:{image}", "disk")
    await service.caller.until("disk", State="connected", MountPoint=str(place))
    await service.daemon.kill()
    await service.daemon.start()
    await service.caller.until("disk", State="connected", MountPoint=str(place))
    await service.caller.unmanage("disk")
    await service.caller.unmanaged(f"posix+ext4:{image}")
    assert mounted(service).target == str(place)


async def test_mount_points_that_the_service_made_go_with_the_mount(
    service: Service, image: Path
) -> None:
    chosen = service.directory / "chosen" / "deep"
    for options in ({}, {"mountpoint": str(chosen)}):
        await service.caller.manage(f"posix+ext4:{image}", "disk", **options)
        place = Path((await service.caller.until("disk", State="connected"))["MountPoint"])
        assert place == chosen if options else place.parent == service.directory / "run" / "mnt"
        await service.caller.unmanage("disk")
        await service.caller.gone(f"posix+ext4:{image}")
        assert place.name not in os.listdir(place.parent)


async def test_options_can_be_changed_by_managing_again(service: Service, image: Path) -> None:
    caller, uri = service.caller, f"posix+ext4:{image}"
    for options in ({}, {"mountpoint": str(service.directory / "place")}):
        for read_only in (False, True, False):
            await caller.manage(uri, "disk", read_only=read_only, **options)
            found = await caller.until("disk", State="connected")
            below = {mount.target: mount for mount in mounts_below(service.directory)}
            shown = below[found["MountPoint"]]  # the one before it may be there still
            assert found["ConnectionInfo"]["readOnly"] is shown.read_only is read_only
            await caller.unmanage("disk")  # and it is not waited for
    await caller.gone(uri)


async def test_what_cannot_be_written_now_is_connected_when_it_can(
    service: Service, image: Path
) -> None:
    place = service.directory / "elsewhere"
    place.mkdir()
    tool("mount", "-o", "ro", image, place)
    await service.caller.manage(f"posix+ext4:{image}", "disk")
    found = await service.caller.until("disk", State="waiting", StateReason="busy")
    assert "cannot be written now" in found["LastErrorMessage"]
    assert mounted(service).target == str(place)
    tool("umount", place)
    found = await service.caller.until("disk", State="connected")
    assert not found["ConnectionInfo"]["readOnly"]
    assert not mounted(service).read_only


async def test_a_mount_that_another_hides_is_not_mounted_twice(
    service: Service, image: Path
) -> None:
    place = service.directory / "place"
    await service.caller.manage(f"posix+ext4:{image}", "disk", mountpoint=str(place))
    await service.caller.until("disk", State="connected")
    mount = mounted(service)
    tool("mount", "-t", "tmpfs", "none", place)
    await service.caller.until("disk", State="waiting", StateReason="busy")
    assert len(mounts_below(service.directory)) == 2
    tool("umount", place)
    await service.caller.until("disk", State="connected", MountPoint=str(place))
    assert mounted(service) == mount


async def test_a_directory_that_goes_and_comes_back_is_followed(service: Service) -> None:
    caller, parent = service.caller, service.directory / "parent"
    directory, away = parent / "directory", service.directory / "away"
    directory.mkdir(parents=True)
    await caller.manage(f"file://{directory}", "data")
    await caller.until("data", State="connected")
    for go, come in (
        (directory.rmdir, directory.mkdir),
        (lambda: parent.rename(away), lambda: away.rename(parent)),
        (lambda: directory.rename(away), lambda: directory.symlink_to(away)),
    ):
        go()
        found = await caller.until("data", State="waiting", StateReason="not-found")
        assert "is not there, or no directory; make it" in found["LastErrorMessage"]
        come()
        await caller.until("data", State="connected", LastErrorName="")
    await caller.told("data")


async def test_a_directory_under_a_mount_is_followed(service: Service) -> None:
    caller, parent = service.caller, service.directory / "parent"
    directory = parent / "directory"
    directory.mkdir(parents=True)
    await caller.manage(f"file://{directory}", "data")
    await caller.until("data", State="connected")
    tool("mount", "-t", "tmpfs", "none", parent)
    await caller.until("data", State="waiting", StateReason="not-found")
    directory.mkdir()  # on the tmpfs
    await caller.until("data", State="connected")
    tool("umount", parent)
    tool("mount", "-t", "tmpfs", "none", directory)
    await caller.until("data", State="connected")
    tool("umount", directory)
    directory.rmdir()
    await caller.until("data", State="waiting", StateReason="not-found")


async def test_a_bind_mount_follows_the_directory_that_is_made_again(service: Service) -> None:
    directory, place = service.directory / "directory", service.directory / "place"
    directory.mkdir()
    await service.caller.manage(f"file://{directory}", "data", mountpoint=str(place))
    await service.caller.until("data", State="connected", MountPoint=str(place))
    directory.rmdir()
    await service.caller.until("data", State="waiting", StateReason="not-found")
    directory.mkdir()
    (directory / "new").touch()
    await service.caller.until("data", State="connected", MountPoint=str(place))
    assert [file.name for file in place.iterdir()] == ["new"]
    tool("umount", place)
    await service.caller.until("data", State="connected", Reconnects=2)
    assert mounted(service).target == str(place)
