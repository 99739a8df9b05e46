# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every mounter promises; whoever inherits this has the fixtures `mounter` and `ground`.

`ground` is a directory with a directory `root`, below which nothing stays mounted.
"""

import os
import stat
from pathlib import Path

import pytest

from storaged_conn.errors import AttemptError, BusyError, MissingError, RefusedError
from storaged_conn.system.mounting import Mounter, Place, tidy
from tests.mounts import make_image, mounts_below, table, tool


def place(ground: Path, path: str = "a/poi nt-é") -> Place:
    return Place(str(ground / "root"), path)


def exists(where: Place) -> bool:
    return Path(where.target).exists()


def mount_id(where: Place) -> int:
    mount = table().at(where.target)
    assert mount
    return mount.id


class MounterContract:
    @pytest.fixture
    def image(self, tmp_path: Path) -> str:
        return str(make_image(tmp_path / "image"))

    async def test_what_is_mounted_has_our_flags_and_is_unmounted(
        self, mounter: Mounter, ground: Path, image: str
    ) -> None:
        where = place(ground)
        await mounter.mount(image, "ext4", ("noatime",), where)
        (mount,) = mounts_below(ground)
        assert mount.target == where.target
        assert {"nosuid", "nodev", "noatime"} <= set(mount.options)
        await mounter.unmount(where, mount.id)
        assert not mounts_below(ground)
        assert not exists(where)

    async def test_the_bare_mount_point_has_no_permissions(
        self, mounter: Mounter, ground: Path, image: str
    ) -> None:
        where = place(ground)
        await mounter.mount(image, "ext4", (), where)
        tool("umount", where.target)
        assert stat.S_IMODE(os.stat(where.target).st_mode) == 0
        await tidy(where)
        assert not exists(where)

    async def test_a_directory_is_mounted_a_second_time(
        self, mounter: Mounter, ground: Path
    ) -> None:
        (ground / "store").mkdir()
        (ground / "store/file").write_text("data")
        where = place(ground)
        await mounter.bind(str(ground / "store"), where, read_only=True)
        assert (Path(where.target) / "file").read_text() == "data"
        (mount,) = mounts_below(ground)
        assert {"ro", "nosuid", "nodev"} <= set(mount.options)
        await mounter.unmount(where, mount.id)
        assert not mounts_below(ground)

    async def test_a_bind_mount_keeps_the_limits_of_what_it_shows(
        self, mounter: Mounter, ground: Path, image: str
    ) -> None:
        inner = Place(str(ground / "root"), "inner")
        await mounter.mount(image, "ext4", ("noexec", "ro"), inner)
        where = place(ground)
        await mounter.bind(inner.target, where, read_only=False)
        seen = table().at(where.target)
        assert seen
        assert {"ro", "noexec", "nosuid", "nodev"} <= set(seen.options)

    async def test_what_mount_says_becomes_the_same_error(
        self, mounter: Mounter, ground: Path, image: str
    ) -> None:
        os.truncate(image, 0)
        os.truncate(image, 1 << 20)
        with pytest.raises(RefusedError, match="wrong fs type"):
            await mounter.mount(image, "ext4", (), place(ground))
        assert not exists(place(ground))

    async def test_what_is_not_there_is_missing(self, mounter: Mounter, ground: Path) -> None:
        with pytest.raises(MissingError, match="is not there"):
            await mounter.mount(str(ground / "image"), "ext4", (), place(ground))
        with pytest.raises(MissingError, match="is not there"):
            await mounter.bind(str(ground / "store"), place(ground), read_only=False)
        assert not (ground / "root/a").exists()

    async def test_what_is_there_and_no_device_is_refused(
        self, mounter: Mounter, ground: Path
    ) -> None:
        (ground / "empty").touch()
        for source in (ground / "empty", ground / "root"):
            with pytest.raises(RefusedError, match="name a block device or an image"):
                await mounter.mount(str(source), "ext4", (), place(ground))
        assert not exists(place(ground))

    async def test_nothing_is_mounted_through_a_link_or_over_what_is_not_empty(
        self, mounter: Mounter, ground: Path, image: str
    ) -> None:
        (ground / "elsewhere").mkdir()
        (ground / "root/link").symlink_to(ground / "elsewhere")
        for path in ("link", "link/point"):
            with pytest.raises(RefusedError, match="symbolic link"):
                await mounter.mount(image, "ext4", (), place(ground, path))
        (ground / "root/full").mkdir()
        (ground / "root/full/file").touch()
        with pytest.raises(BusyError, match="not empty"):
            await mounter.mount(image, "ext4", (), place(ground, "full"))
        assert not mounts_below(ground)

    async def test_what_is_in_use_stays_until_it_is_free(
        self, mounter: Mounter, ground: Path, image: str
    ) -> None:
        where = place(ground)
        await mounter.mount(image, "ext4", (), where)
        held = os.open(where.target, os.O_RDONLY)
        try:
            with pytest.raises(BusyError, match="busy"):
                await mounter.unmount(where, mount_id(where))
            assert mounts_below(ground)
        finally:
            os.close(held)
        await mounter.unmount(where, mount_id(where))
        assert not mounts_below(ground)

    async def test_what_is_in_use_is_detached_when_its_server_is_dead(
        self, mounter: Mounter, ground: Path, image: str
    ) -> None:
        where = place(ground)
        await mounter.mount(image, "ext4", (), where)
        held = os.open(where.target, os.O_RDONLY)
        try:
            await mounter.detach(where)
            assert not mounts_below(ground)
        finally:
            os.close(held)
        await tidy(where)
        assert not exists(where)

    async def test_what_was_mounted_there_instead_stays(
        self, mounter: Mounter, ground: Path, image: str
    ) -> None:
        where = place(ground)
        await mounter.mount(image, "ext4", (), where)
        with pytest.raises(BusyError, match="something else"):
            await mounter.unmount(where, mount_id(where) + 1)
        assert mounts_below(ground)

    async def test_to_unmount_what_is_not_mounted_is_fine(
        self, mounter: Mounter, ground: Path
    ) -> None:
        await mounter.unmount(place(ground), 1)

    async def test_a_place_is_used_again_after_a_failure_and_after_others_unmounted_it(
        self, mounter: Mounter, ground: Path, image: str
    ) -> None:
        where = place(ground)
        for _ in range(2):
            with pytest.raises(AttemptError):
                await mounter.mount(image, "vfat", (), where)
        for _ in range(2):
            await mounter.mount(image, "ext4", (), where)
            await mounter.unmount(where, mount_id(where))
        assert not mounts_below(ground)
