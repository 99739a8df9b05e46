# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds for both drivers that mount, with real mounts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from storaged_conn.core.model import Absent, Present, Target, Topic, Value
from storaged_conn.drivers.file import FileDriver
from storaged_conn.drivers.mount import MountDriver, key_of
from storaged_conn.drivers.posix import PosixDriver
from storaged_conn.errors import (
    BusyError,
    MissingError,
    RefusedError,
    TimedOutError,
    TroubleError,
    UnusableError,
)
from storaged_conn.system.mountinfo import Mount, MountTable
from storaged_conn.system.mounting import Place
from tests.mounts import cleaned, make_image, mounts_below, needs_root, tool

pytestmark = [needs_root, pytest.mark.root]


@dataclass
class Site:
    """Storage, a driver for it, and where it may be mounted.

    Attributes:
        storage: what is mounted: a directory or an image.
        point: the option `mountpoint`, or None.
    """

    ground: Path
    kind: type[MountDriver]
    scheme: str
    storage: Path
    point: Path | None

    def driver(self) -> MountDriver:
        """Start the driver, as after a restart: it knows what is on disk and in the kernel."""
        return self.kind(MountTable(), self.ground / "run", [self.ground / "root"])

    def target(self, **options: Value) -> Target:
        place: dict[str, Value] = {"mountpoint": str(self.point)} if self.point else {}
        given = {name.replace("_", "-"): value for name, value in options.items()}
        return self.driver().parse(f"{self.scheme}:{self.storage}", place | given)

    def where(self) -> Path:
        return Path(self.driver().place(self.target()).target)

    def mounted(self) -> list[Mount]:
        return mounts_below(self.ground)

    def present(self) -> Mount:
        """Give the one mount that there is."""
        (mount,) = self.mounted()
        return mount


@pytest.fixture(params=["image", "image at a place", "directory at a place"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "root").mkdir()
    point = tmp_path / "root/sub/point"
    if request.param == "directory at a place":
        (tmp_path / "store").mkdir()
        (tmp_path / "store/data").write_text("data")
        found = Site(tmp_path, FileDriver, "file", tmp_path / "store", point)
    else:
        image = make_image(tmp_path / "store")
        place = point if request.param == "image at a place" else None
        found = Site(tmp_path, PosixDriver, "posix+ext4", image, place)
    with cleaned(tmp_path):
        yield found


@pytest.fixture
def image_site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "root").mkdir()
    image = make_image(tmp_path / "store")
    with cleaned(tmp_path):
        yield Site(tmp_path, PosixDriver, "posix+ext4", image, None)


@pytest.fixture
def directory_site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "root").mkdir()
    (tmp_path / "store").mkdir()
    with cleaned(tmp_path):
        yield Site(tmp_path, FileDriver, "file", tmp_path / "store", tmp_path / "root/point")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Use a file system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def linked(device: str) -> Iterator[str]:
    """Give a device a second name, as udev does in /dev/disk."""
    link = Path(f"/dev/storaged-conn-test-{os.getpid()}")
    link.symlink_to(Path(device).name)
    try:
        yield str(link)
    finally:
        link.unlink()


async def test_what_was_connected_is_observed_and_disconnected(site: Site) -> None:
    driver, target = site.driver(), site.target()
    found = await driver.connect(target)
    assert (found.ours, found.mountpoint) == (True, str(site.where()))
    assert await driver.observe(target) == found
    assert found.name == f"mount-{site.present().id}"
    await driver.disconnect(target, found)
    assert await driver.observe(target) == Absent()
    assert site.mounted() == []
    assert not site.where().exists()


async def test_to_connect_and_to_disconnect_twice_is_success(site: Site) -> None:
    driver, target = site.driver(), site.target()
    found = await driver.connect(target)
    assert await driver.connect(target) == found
    await driver.disconnect(target, found)
    await driver.disconnect(target, found)
    await driver.disconnect(target, None)


async def test_nobody_gets_set_user_id_or_devices(site: Site) -> None:
    await site.driver().connect(site.target())
    assert {"nosuid", "nodev"} <= {*site.present().options}


async def test_read_only_is_read_only(site: Site) -> None:
    found = await site.driver().connect(site.target(read_only=True))
    assert found.info["readOnly"] is True
    assert site.present().read_only


async def test_what_is_ours_is_known_after_a_restart(site: Site) -> None:
    found = await site.driver().connect(site.target())
    driver = site.driver()
    assert await driver.connect(site.target()) == found
    await driver.disconnect(site.target(), None)
    assert site.mounted() == []


async def test_what_came_about_while_we_were_killed_is_ours(site: Site) -> None:
    driver, target = site.driver(), site.target()
    await driver.attach(target, driver.place(target))
    driver._marks.plan(key_of(target))
    again = site.driver()
    assert (await again.connect(target)).ours
    await again.disconnect(target, None)
    assert site.mounted() == []


async def test_what_others_unmounted_is_absent_and_comes_back(site: Site) -> None:
    driver, target = site.driver(), site.target()
    await driver.connect(target)
    tool("umount", site.where())
    driver.table.refresh()
    assert await driver.observe(target) == Absent()
    assert (await driver.connect(target)).ours


async def test_what_others_unmounted_is_already_gone(site: Site) -> None:
    driver, target = site.driver(), site.target()
    found = await driver.connect(target)
    tool("umount", site.where())
    await driver.disconnect(target, found)
    assert site.driver()._marks._marks == {}
    assert not site.where().exists()


async def test_what_others_use_stays(site: Site) -> None:
    driver, target = site.driver(), site.target()
    found = await driver.connect(target)
    with held(site.where()), pytest.raises(BusyError):
        await driver.disconnect(target, found)
    assert await driver.observe(target) == found
    await driver.disconnect(target, found)
    assert site.mounted() == []


async def test_what_is_hidden_by_another_mount_is_not_forgotten(site: Site) -> None:
    driver, target = site.driver(), site.target()
    found = await driver.connect(target)
    tool("mount", "-t", "tmpfs", "none", site.where())
    driver.table.refresh()
    assert await driver.observe(target) == Absent()
    with pytest.raises(BusyError):
        await driver.connect(target)
    with pytest.raises(BusyError, match="hidden"):
        await driver.disconnect(target, found)
    tool("umount", site.where())
    await driver.disconnect(target, found)
    assert site.mounted() == []


async def test_nothing_is_lost_under_a_mount(site: Site) -> None:
    site.where().mkdir(parents=True)
    (site.where() / "precious").write_text("data")
    with pytest.raises(BusyError, match="not empty"):
        await site.driver().connect(site.target())
    with pytest.raises(BusyError, match="not empty"):
        await site.driver().validate(site.target())
    assert os.listdir(site.where()) == ["precious"]


async def test_nothing_is_mounted_through_a_link(site: Site) -> None:
    where, victim = site.where(), site.ground / "victim"
    victim.mkdir()
    where.parent.mkdir(parents=True, exist_ok=True)
    where.symlink_to(victim)
    with pytest.raises(RefusedError):
        await site.driver().connect(site.target())
    assert site.mounted() == []


async def test_what_is_not_there_is_missing_and_comes_when_it_is(site: Site) -> None:
    driver, target = site.driver(), site.target()
    aside = site.storage.rename(site.ground / "aside")
    with pytest.raises(MissingError):
        await driver.connect(target)
    with pytest.raises(MissingError):
        await driver.validate(target)
    assert driver._marks._marks == {}
    assert not site.where().exists()
    aside.rename(site.storage)
    await driver.validate(target)
    assert (await driver.connect(target)).ours
    await driver.validate(target)


async def test_a_place_with_something_else_is_left_alone(site: Site) -> None:
    driver, target = site.driver(), site.target()
    site.where().mkdir(parents=True)
    tool("mount", "-t", "tmpfs", "mine", site.where())
    with pytest.raises(BusyError, match="mine"):
        await driver.connect(target)
    await driver.disconnect(target, None)
    assert site.present().source == "mine"


async def test_what_somebody_else_mounted_there_is_adopted_and_stays(site: Site) -> None:
    driver, target = site.driver(), site.target()
    site.where().mkdir(parents=True)
    how = ["--bind"] if site.kind is FileDriver else ["-t", "ext4"]
    tool("mount", *how, site.storage, site.where())
    found = await driver.connect(target)
    assert (found.ours, found.mountpoint) == (False, str(site.where()))
    await driver.disconnect(target, found)
    assert len(site.mounted()) == 1


async def test_an_unreadable_table_tears_nothing_down(site: Site) -> None:
    await site.driver().connect(site.target())
    blind = site.kind(MountTable(site.ground / "no"), site.ground / "run", [site.ground / "root"])
    assert blind.look_up(site.target()) is None
    with pytest.raises(TroubleError):
        await blind.disconnect(site.target(), None)
    with pytest.raises(TroubleError):
        await blind.connect(site.target())
    assert len(site.mounted()) == 1


# images


async def test_no_mount_option_undoes_our_flags(image_site: Site) -> None:
    driver, target = image_site.driver(), image_site.target(mount_options=("noatime",))
    forged = Target(target.uri, (("mount-options", ("suid", "dev", "exec")),))
    for wanted in (target, forged):  # the forged one could not come through parse()
        await driver.connect(wanted)
        assert {"nosuid", "nodev"} <= {*image_site.present().options}
        await driver.disconnect(wanted, None)


async def test_a_device_by_another_name_is_the_same_device(image_site: Site) -> None:
    there = image_site.ground / "there"
    there.mkdir()
    tool("mount", "-t", "ext4", image_site.storage, there)
    device = image_site.present().source
    driver = image_site.driver()
    with linked(device) as link:
        for source in (device, link, str(image_site.storage)):
            found = await driver.connect(driver.parse(f"posix+ext4:{source}", {}))
            assert (found.ours, found.mountpoint) == (False, str(there))
            assert found.devices == (device,)


async def test_what_somebody_else_mounted_by_a_link_is_the_device(image_site: Site) -> None:
    first, second = image_site.ground / "first", image_site.ground / "second"
    for place in (first, second):
        place.mkdir()
    tool("mount", "-t", "ext4", image_site.storage, first)
    device, driver = image_site.present().source, image_site.driver()
    target = driver.parse(f"posix+ext4:{device}", {})
    with linked(device) as link:
        tool("mount", "--no-canonicalize", "-t", "ext4", link, second)
        tool("umount", first)
        assert image_site.present().source == link
        found = await driver.connect(target)
    assert (found.ours, found.mountpoint) == (False, str(second))
    driver.table.refresh()
    assert await driver.observe(target) == found  # though the link is gone


async def test_a_mount_of_ours_is_not_adopted_for_another_target(image_site: Site) -> None:
    driver, point = image_site.driver(), image_site.ground / "root/point"
    placed = driver.parse(f"posix+ext4:{image_site.storage}", {"mountpoint": str(point)})
    own = await driver.connect(placed)
    other = await driver.connect(image_site.target())
    assert other.ours
    assert other.mountpoint != own.mountpoint
    await driver.disconnect(placed, own)
    assert await driver.observe(image_site.target()) == other


async def test_ours_is_listed_like_any_other(image_site: Site) -> None:
    driver = image_site.driver()
    found = await driver.connect(image_site.target())
    listed = {foreign.present.name: foreign for foreign in driver.foreign()}
    assert listed[found.name].uri == f"posix+ext4:{image_site.storage}"
    assert listed[found.name].present == found


async def test_an_image_without_a_file_system_is_refused(image_site: Site) -> None:
    image_site.storage.write_bytes(bytes(1 << 20))
    with pytest.raises(RefusedError):
        await image_site.driver().connect(image_site.target())


async def test_an_unknown_type_is_unusable(image_site: Site) -> None:
    driver = image_site.driver()
    target = driver.parse(f"posix+unheard-of:{image_site.storage}", {})
    for attempt in (driver.validate, driver.connect):
        with pytest.raises(UnusableError):
            await attempt(target)


async def test_an_image_that_was_removed_stays_mounted_and_ours(image_site: Site) -> None:
    driver, target = image_site.driver(), image_site.target()
    found = await driver.connect(target)
    image_site.storage.unlink()
    driver.table.refresh()
    assert isinstance(await driver.observe(target), Present)
    await driver.disconnect(target, found)
    assert image_site.mounted() == []


async def test_an_image_behind_a_link_is_ours(image_site: Site) -> None:
    (image_site.ground / "link").symlink_to("store")
    driver = image_site.driver()
    target = driver.parse(f"posix+ext4:{image_site.ground}/link", {})
    found = await driver.connect(target)
    assert await image_site.driver().connect(target) == found
    await driver.disconnect(target, found)
    assert image_site.mounted() == []


# directories


@pytest.mark.parametrize("fate", ["removed", "renamed"])
async def test_a_mount_whose_directory_is_gone_is_lost_and_made_anew(
    directory_site: Site, fate: str
) -> None:
    site, driver, target = directory_site, directory_site.driver(), directory_site.target()
    await driver.connect(target)
    site.storage.rename(site.ground / "elsewhere")
    if fate == "removed":
        (site.ground / "elsewhere").rmdir()
    assert await driver.observe(target) == Absent()
    with pytest.raises(MissingError):
        await driver.connect(target)
    assert site.mounted() == []
    site.storage.mkdir()
    (site.storage / "new").write_text("")
    assert (await driver.connect(target)).ours
    assert os.listdir(site.where()) == ["new"]


async def test_a_bind_mount_that_was_not_finished_is_made_anew(directory_site: Site) -> None:
    site, driver, target = directory_site, directory_site.driver(), directory_site.target()
    site.where().mkdir()
    tool("mount", "--bind", site.storage, site.where())  # killed here: no nosuid,nodev yet
    driver._marks.plan(key_of(target))
    assert await driver.observe(target) == Absent()
    assert (await driver.connect(target)).ours
    assert {"nosuid", "nodev"} <= {*site.present().options}


async def test_a_directory_behind_a_link_is_ours(directory_site: Site) -> None:
    site = directory_site
    (site.ground / "link").symlink_to("store")
    driver = site.driver()
    target = driver.parse(f"file://{site.ground}/link", {"mountpoint": str(site.where())})
    found = await driver.connect(target)
    assert await site.driver().connect(target) == found
    await driver.disconnect(target, found)
    assert site.mounted() == []


# links that the administrator has


@pytest.mark.parametrize("placed", [True, False])
async def test_the_roots_may_be_reached_by_links(image_site: Site, placed: object) -> None:
    ground = image_site.ground
    (ground / "alias").symlink_to(ground)
    driver = PosixDriver(MountTable(), ground / "alias/run", [ground / "alias/root"])
    options: dict[str, Value] = {"mountpoint": f"{ground}/alias/root/x"} if placed else {}
    target = driver.parse(f"posix+ext4:{image_site.storage}", options)
    found = await driver.connect(target)
    assert found.mountpoint == image_site.present().target
    assert Topic("mount", found.mountpoint) in driver.topics(target)
    await driver.disconnect(target, found)
    assert image_site.mounted() == []


# time-outs


class SlowDriver(PosixDriver):
    """Is killed by its deadline just before or just after the kernel did what was asked."""

    late = True

    async def attach(self, target: Target, place: Place) -> None:
        if self.late:
            await super().attach(target, place)
        raise TimedOutError("too slow")

    async def detach(self, target: Target, place: Place, mount: Mount) -> None:
        if self.late:
            await super().detach(target, place, mount)
        raise TimedOutError("too slow")


@pytest.fixture
def slow(image_site: Site) -> SlowDriver:
    image_site.kind = SlowDriver
    driver = image_site.driver()
    assert isinstance(driver, SlowDriver)
    return driver


async def test_a_mount_that_came_with_its_time_out_is_kept(
    image_site: Site, slow: SlowDriver
) -> None:
    target = image_site.target()
    found = await slow.connect(target)
    assert found.ours
    assert await image_site.driver().connect(target) == found


async def test_a_mount_that_timed_out_is_not_ours_later(image_site: Site, slow: SlowDriver) -> None:
    slow.late = False
    with pytest.raises(TimedOutError):
        await slow.connect(image_site.target())
    assert image_site.driver()._marks._marks == {}


async def test_an_unmount_that_timed_out_is_believed_to_the_table(
    image_site: Site, slow: SlowDriver
) -> None:
    found = await slow.connect(image_site.target())
    slow.late = False
    with pytest.raises(TimedOutError):
        await slow.disconnect(image_site.target(), found)
    slow.late = True
    await slow.disconnect(image_site.target(), found)
    assert image_site.mounted() == []
    assert slow._marks._marks == {}
