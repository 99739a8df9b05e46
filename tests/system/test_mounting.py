# SPDX-License-Identifier: LGPL-2.1-or-later
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.errors import (
    AccessDeniedError,
    AttemptError,
    BusyError,
    MissingError,
    NameResolutionError,
    NoNetworkError,
    NotOfferedError,
    ProtocolError,
    RefusedError,
    ServerRefusedError,
    StaleError,
    TimedOutError,
    TroubleError,
    UnreachableError,
    UnusableError,
)
from storaged_conn.system.mounting import Place, bind, check, explain, mount, unmount
from storaged_conn.system.run import Result
from tests.mounts import (
    cleaned,
    lazily_unmount,
    make_image,
    mounts_below,
    needs_root,
    swapping,
    table,
    tool,
)

DATA = Path(__file__).parents[1] / "data"

SAYS: dict[str, type[AttemptError] | tuple[type[AttemptError], ...]] = {
    "bad-option": RefusedError,
    "bad-superblock": RefusedError,
    "directory": RefusedError,
    "empty-image": RefusedError,
    "in-use": BusyError,
    # 2.41 says the same of what is there and no device: whoever mounts looks at that.
    "missing-device": (MissingError, RefusedError),
    "missing-image": (MissingError, RefusedError),
    "no-helper": UnusableError,
    "not-root": RefusedError,
    "other-type": BusyError,
    "umount-busy": BusyError,
    "umount-not-mounted": TroubleError,
    "unknown-type": UnusableError,
    "unreadable": TroubleError,
    "usage": RefusedError,
}
NFS_SAYS: dict[str, type[AttemptError]] = {
    "a-file": RefusedError,
    "access-denied": AccessDeniedError,
    "bad-name": NameResolutionError,
    "bad-option": RefusedError,
    "in-use": BusyError,
    "no-export": NotOfferedError,
    "no-minor-version": ProtocolError,
    "no-network": NoNetworkError,
    "no-route": UnreachableError,
    "no-tlshd": UnusableError,
    "no-version": ProtocolError,
    "refused": ServerRefusedError,
    "silent": TimedOutError,
    "stale": StaleError,
}
CAPTURES = sorted(DATA.glob("mount-*"))
NFS_CAPTURES = sorted(DATA.glob("nfs-*"))


def read_capture(path: Path) -> Result:
    head, _, stderr = path.read_text().partition("\n")
    return Result(int(head.removeprefix("status ")), "", stderr)


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.name)
def test_what_mount_said_becomes_an_error_of_ours(capture: Path) -> None:
    expected = SAYS[capture.name.split("-", 2)[2]]
    error = explain(read_capture(capture))
    assert isinstance(error, expected)
    assert "dmesg" not in str(error)
    assert "; " in str(error)


@pytest.mark.parametrize("capture", NFS_CAPTURES, ids=lambda path: path.name)
def test_what_mount_nfs_said_becomes_an_error_of_ours(capture: Path) -> None:
    error = explain(read_capture(capture))
    assert type(error) is NFS_SAYS[capture.name.split("-", 2)[2]]
    assert str(error).startswith(("mount.nfs: ", "umount.nfs4: "))
    assert "; " in str(error)


def test_all_answers_of_mount_nfs_are_told_apart() -> None:
    assert {path.name.split("-", 2)[2] for path in NFS_CAPTURES} == NFS_SAYS.keys()


def test_both_versions_of_the_tools_were_captured() -> None:
    assert {path.name[:10] for path in CAPTURES} == {"mount-2.38", "mount-2.41"}
    assert {path.name[:9] for path in NFS_CAPTURES} == {"nfs-2.6.2", "nfs-2.8.3"}


@given(st.integers(-64, 255).filter(bool), st.text())
def test_every_answer_is_an_error_with_a_bounded_clean_message(status: int, words: str) -> None:
    message = str(explain(Result(status, "", words)))
    assert message.isprintable()
    assert 0 < len(message) < 400


# what follows needs root


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "root").mkdir()
    with cleaned(tmp_path):
        yield tmp_path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image")


def place(ground: Path, path: str = "point") -> Place:
    return Place(str(ground / "root"), path)


def flags_at(target: str) -> set[str]:
    seen = table().at(target)
    assert seen is not None
    return {*seen.options}


def mount_id(target: str) -> int:
    seen = table().at(target)
    assert seen is not None
    return seen.id


async def refusal(image: Path, where: Place) -> AttemptError:
    with pytest.raises(AttemptError) as caught:
        await mount(str(image), "ext4", (), where)
    assert table().at(where.target) is None
    return caught.value


@needs_root
@pytest.mark.root
async def test_an_image_is_mounted_without_set_user_id_and_devices(
    ground: Path, image: Path
) -> None:
    await mount(str(image), "ext4", ("suid", "dev", "noatime"), place(ground))
    flags = flags_at(place(ground).target)
    assert {"nosuid", "nodev", "noatime", "rw"} <= flags


@needs_root
@pytest.mark.root
async def test_a_directory_is_mounted_twice_with_the_same_limits(ground: Path) -> None:
    (ground / "there").mkdir()
    await bind(str(ground / "there"), place(ground), read_only=False)
    await bind(str(ground / "there"), place(ground, "other"), read_only=True)
    assert {"nosuid", "nodev", "rw"} <= flags_at(place(ground).target)
    assert {"nosuid", "nodev", "ro"} <= flags_at(place(ground, "other").target)


@needs_root
@pytest.mark.root
async def test_a_bind_mount_keeps_the_limits_of_what_it_shows(ground: Path) -> None:
    (ground / "there").mkdir()
    tool("mount", "-t", "tmpfs", "-o", "noexec,ro", "none", ground / "there")
    await bind(str(ground / "there"), place(ground), read_only=False)
    assert {"nosuid", "nodev", "noexec", "ro"} <= flags_at(place(ground).target)


@needs_root
@pytest.mark.root
async def test_missing_directories_are_made_and_the_mount_point_cannot_be_written(
    ground: Path, image: Path
) -> None:
    where = place(ground, "a/b/point")
    await mount(str(image), "ext4", (), where)
    assert stat.S_IMODE(os.stat(ground / "root/a/b").st_mode) == 0o755
    await unmount(where, mount_id(where.target))
    assert os.listdir(ground / "root/a/b") == []


@needs_root
@pytest.mark.root
async def test_a_bare_mount_point_has_no_permissions(ground: Path, image: Path) -> None:
    await mount(str(image), "ext4", (), place(ground))
    tool("umount", place(ground).target)
    assert stat.S_IMODE(os.stat(place(ground).target).st_mode) == 0
    await mount(str(image), "ext4", (), place(ground))


@needs_root
@pytest.mark.root
async def test_a_mount_point_with_a_purpose_of_its_own_stays(ground: Path, image: Path) -> None:
    (ground / "root/point").mkdir(mode=0o750)
    await mount(str(image), "ext4", (), place(ground))
    await unmount(place(ground), mount_id(place(ground).target))
    assert (ground / "root/point").is_dir()


@needs_root
@pytest.mark.root
async def test_nothing_is_mounted_over_a_directory_with_something_in_it(
    ground: Path, image: Path
) -> None:
    point = ground / "root/point"
    point.mkdir()
    (point / "precious").write_text("data")
    error = await refusal(image, place(ground))
    assert isinstance(error, BusyError)
    assert "not empty" in str(error)
    assert (point / "precious").read_text() == "data"


@needs_root
@pytest.mark.root
async def test_nothing_is_mounted_over_another_mount(ground: Path, image: Path) -> None:
    await mount(str(image), "ext4", (), place(ground))
    with pytest.raises(BusyError, match="already"):
        await bind(str(ground / "root"), place(ground), read_only=False)
    assert len(mounts_below(ground)) == 1


@needs_root
@pytest.mark.root
async def test_nothing_is_mounted_through_a_link(ground: Path, image: Path) -> None:
    (ground / "victim").mkdir()
    (ground / "root/link").symlink_to(ground / "victim")
    (ground / "root/file").write_text("")
    for path in ("link", "link/point", "file", "file/point"):
        error = await refusal(image, place(ground, path))
        assert isinstance(error, RefusedError)
    assert list((ground / "victim").iterdir()) == []
    assert mounts_below(ground) == []


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
async def test_no_way_that_others_can_change_is_taken(ground: Path, image: Path, mode: int) -> None:
    (ground / "root/open").mkdir()
    (ground / "root/open").chmod(mode)
    assert isinstance(await refusal(image, place(ground, "open/point")), RefusedError)
    (ground / "root/open").chmod(0o755)
    os.chown(ground / "root/open", 65534, -1)
    assert isinstance(await refusal(image, place(ground, "open/point")), RefusedError)


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("swapped", ["way", "way/point"])
async def test_a_link_that_is_swapped_in_while_mounting_redirects_nothing(
    ground: Path, image: Path, swapped: str
) -> None:
    (ground / "victim/point").mkdir(parents=True)
    (ground / "root/way/point").mkdir(parents=True)
    victims = {str(ground / "victim"), str(ground / "victim/point")}
    outcomes = Counter[str]()
    with swapping(ground / "root" / swapped, ground / "victim"):
        for _ in range(20):
            try:
                await mount(str(image), "ext4", (), place(ground, "way/point"))
                outcomes["mounted"] += 1
            except AttemptError as error:
                outcomes[type(error).__name__] += 1
            found = mounts_below(ground)
            assert victims.isdisjoint(mount.target for mount in found)
            for mounted in found:
                lazily_unmount(mounted)
    assert outcomes.total() == 20


@needs_root
@pytest.mark.root
async def test_what_is_not_there_is_missing_and_leaves_nothing_behind(ground: Path) -> None:
    assert isinstance(await refusal(ground / "none", place(ground)), MissingError)
    with pytest.raises(MissingError):
        await bind(str(ground / "none"), place(ground), read_only=False)
    (ground / "file").write_text("")
    with pytest.raises(MissingError):
        await bind(str(ground / "file"), place(ground), read_only=False)
    assert list((ground / "root").iterdir()) == []


@needs_root
@pytest.mark.root
async def test_a_failed_mount_leaves_nothing_behind(ground: Path) -> None:
    (ground / "zero").write_bytes(bytes(1 << 20))
    assert isinstance(await refusal(ground / "zero", place(ground)), RefusedError)
    assert list((ground / "root").iterdir()) == []


@needs_root
@pytest.mark.root
async def test_what_is_in_use_stays_mounted(ground: Path, image: Path) -> None:
    await mount(str(image), "ext4", (), place(ground))
    number = mount_id(place(ground).target)
    held = os.open(place(ground).target, os.O_RDONLY)
    try:
        with pytest.raises(BusyError):
            await unmount(place(ground), number)
    finally:
        os.close(held)
    assert mount_id(place(ground).target) == number
    await unmount(place(ground), number)
    assert mounts_below(ground) == []


@needs_root
@pytest.mark.root
async def test_to_unmount_twice_is_fine(ground: Path, image: Path) -> None:
    await mount(str(image), "ext4", (), place(ground))
    number = mount_id(place(ground).target)
    await unmount(place(ground), number)
    await unmount(place(ground), number)
    await unmount(place(ground, "never/was"), number)


@needs_root
@pytest.mark.root
async def test_what_was_mounted_there_instead_is_not_unmounted(ground: Path, image: Path) -> None:
    await mount(str(image), "ext4", (), place(ground))
    number = mount_id(place(ground).target)
    tool("mount", "-t", "tmpfs", "none", place(ground).target)
    with pytest.raises(BusyError, match="something else"):
        await unmount(place(ground), number)
    assert len(mounts_below(ground)) == 2


@needs_root
@pytest.mark.root
async def test_nothing_is_unmounted_through_a_link(ground: Path, image: Path) -> None:
    await mount(str(image), "ext4", (), place(ground))
    (ground / "root/link").symlink_to("point")
    with pytest.raises(RefusedError):
        await unmount(place(ground, "link"), mount_id(place(ground).target))
    assert len(mounts_below(ground)) == 1


@needs_root
@pytest.mark.root
async def test_a_check_finds_what_a_mount_would_and_changes_nothing(
    ground: Path, image: Path
) -> None:
    await check(str(image), "ext4", place(ground, "new/point"))
    await check(str(ground), "", place(ground, "new/point"))
    with pytest.raises(MissingError):
        await check(str(ground / "none"), "ext4", place(ground))
    with pytest.raises(MissingError):
        await check(str(image), "", place(ground))
    with pytest.raises(UnusableError):
        await check(str(image), "unheard-of", place(ground))
    (ground / "root/full/x").mkdir(parents=True)
    with pytest.raises(BusyError):
        await check(str(image), "ext4", place(ground, "full"))
    assert [path.name for path in (ground / "root").iterdir()] == ["full"]
