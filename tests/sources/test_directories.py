# SPDX-License-Identifier: LGPL-2.1-or-later
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from storaged_conn.core.model import Topic
from storaged_conn.sources.directories import DirectorySource
from storaged_conn.system.inotify import OVERFLOW, Event, Inotify
from storaged_conn.system.mountinfo import MountTable
from tests.mounts import cleaned, needs_root, tool
from tests.sources.looks import Looks


@pytest.fixture
def table() -> MountTable:
    table = MountTable()
    table.refresh()
    return table


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
async def source(table: MountTable, looks: Looks) -> AsyncIterator[DirectorySource]:
    source = DirectorySource(table)
    source.start(looks, looks.resync)
    yield source
    source.close()
    source.close()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    with cleaned(tmp_path):
        yield tmp_path


def watch(source: DirectorySource, path: Path) -> Topic:
    topic = Topic("directory", str(path))
    source.watch(topic)
    return topic


def watches(source: DirectorySource) -> int:
    return len(source._concerned)


async def test_a_directory_that_is_made_step_by_step_is_heard_of_at_each(
    source: DirectorySource, looks: Looks, tmp_path: Path
) -> None:
    deep = tmp_path / "a/b/c"
    watch(source, deep)
    for step in (tmp_path / "a", tmp_path / "a/b", deep):
        step.mkdir()
        assert await looks.of("directory", deep) is True


async def test_a_directory_that_is_made_at_once_is_there_at_the_last_look(
    source: DirectorySource, tmp_path: Path, table: MountTable
) -> None:
    for number in range(20):
        deep, looks = tmp_path / f"{number}/b/c/d/e", Looks()
        other = DirectorySource(table)
        other.start(looks, looks.resync)
        try:
            watch(other, deep)
            deep.mkdir(parents=True)
            await looks.until(deep.is_dir)
            deep.rmdir()  # and from now on it is watched itself
            looks.heard.clear()
            await looks.of("directory", deep)
        finally:
            other.close()


@pytest.mark.parametrize("above", ["a/b/c", "a/b", "a"])
async def test_to_rename_or_remove_what_is_above_is_heard_of(
    source: DirectorySource, looks: Looks, tmp_path: Path, above: str
) -> None:
    deep, there, away = tmp_path / "a/b/c", tmp_path / above, tmp_path / "away"
    deep.mkdir(parents=True)
    topic = watch(source, deep)
    there.rename(away)
    await looks.of("directory", deep)
    away.rename(there)
    await looks.of("directory", deep)
    shutil.rmtree(there)
    await looks.of("directory", deep)
    deep.mkdir(parents=True)
    await looks.until(lambda: source._ways[topic][-1][1] == "")  # watched to its end


async def test_links_on_the_way_are_followed(
    source: DirectorySource, looks: Looks, tmp_path: Path
) -> None:
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("./sub/../real")
    (tmp_path / "sub").mkdir()
    deep = tmp_path / "link/sub/dir"
    watch(source, deep)
    (tmp_path / "real/sub/dir").mkdir()
    await looks.of("directory", deep)
    (tmp_path / "real").rename(tmp_path / "gone")
    await looks.of("directory", deep)
    (tmp_path / "gone").rename(tmp_path / "real")
    await looks.of("directory", deep)
    (tmp_path / "link").unlink()
    await looks.of("directory", deep)


async def test_links_in_a_circle_end(source: DirectorySource, looks: Looks, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    watch(source, tmp_path / "a/x")
    (tmp_path / "b").unlink()
    await looks.of("directory", tmp_path / "a/x")


async def test_a_file_that_comes_is_heard_of(
    source: DirectorySource, looks: Looks, tmp_path: Path
) -> None:
    image = tmp_path / "x.img"
    watch(source, image)
    image.write_text("")
    await looks.of("directory", image)
    image.unlink()
    await looks.of("directory", image)


async def test_other_names_are_nobodys_business(
    source: DirectorySource, looks: Looks, tmp_path: Path
) -> None:
    watch(source, tmp_path / "mine")
    for number in range(1000):
        (tmp_path / f"other-{number}").write_text("")
    (tmp_path / "mine").mkdir()
    await looks.of("directory", tmp_path / "mine")
    assert looks.heard == []
    assert looks.resyncs == 0


async def test_two_on_one_way_are_told_apart(
    source: DirectorySource, looks: Looks, tmp_path: Path
) -> None:
    first, second = watch(source, tmp_path / "1"), watch(source, tmp_path / "2")
    (tmp_path / "2").mkdir()
    await looks.until(lambda: looks.heard)
    assert looks.heard == [(second, True)]
    source.unwatch(second)
    (tmp_path / "1").mkdir()
    await looks.until(lambda: (first, True) in looks.heard)


async def test_nobody_left_to_care_leaves_no_watch(source: DirectorySource, tmp_path: Path) -> None:
    topics = [watch(source, tmp_path / name) for name in ("a/b", "a/c", "d")]
    assert watches(source) > 0
    for topic in topics:
        source.unwatch(topic)
        source.unwatch(topic)
    assert watches(source) == 0
    assert source._below == {}


async def test_topics_of_other_kinds_are_left_to_others(source: DirectorySource) -> None:
    source.watch(Topic("mount", "/"))
    source.unwatch(Topic("mount", "/"))
    assert watches(source) == 0


async def test_what_is_below_a_server_or_fuse_is_not_watched(tmp_path: Path) -> None:
    (tmp_path / "nfs/dir").mkdir(parents=True)
    (tmp_path / "table").write_text(
        f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:40 / {tmp_path}/nfs rw - nfs4 host:/x rw\n"
    )
    table, looks = MountTable(tmp_path / "table"), Looks()
    source = DirectorySource(table)
    source.start(looks, looks.resync)
    try:
        topic = watch(source, tmp_path / "nfs/dir")
        assert source._ways[topic] == []  # the table is not known yet
        table.refresh()
        assert looks.heard == [(topic, True)]
        assert [name for _, name in source._ways[topic]] == [*tmp_path.parts[1:], "nfs"]
        (tmp_path / "link").symlink_to("nfs/dir")
        linked = watch(source, tmp_path / "link/x")
        assert [name for _, name in source._ways[linked]][-2:] == ["link", "nfs"]
    finally:
        source.close()


async def test_an_overflow_is_a_resync_and_every_way_is_walked_anew(
    source: DirectorySource, looks: Looks, tmp_path: Path
) -> None:
    topic = watch(source, tmp_path / "x")
    assert source._inotify is not None
    real, source._inotify = source._inotify, Overflowing()
    try:
        source._read()
    finally:
        source._inotify.close()
        source._inotify = real
    assert looks.resyncs == 1
    assert looks.heard == [(topic, True)]


class Overflowing(Inotify):
    """Has lost an event."""

    def read(self) -> Iterator[Event]:
        yield Event(-1, OVERFLOW, "")


@needs_root
@pytest.mark.root
async def test_a_mount_over_the_way_is_heard_of_and_so_is_its_end(
    source: DirectorySource, looks: Looks, table: MountTable, ground: Path
) -> None:
    deep = ground / "a/b"
    deep.mkdir(parents=True)
    watch(source, deep)
    tool("mount", "-t", "tmpfs", "x", ground / "a")
    table.refresh()
    await looks.of("directory", deep)
    deep.mkdir()  # on the new file system
    await looks.of("directory", deep)
    tool("umount", ground / "a")  # a watch does not keep it busy
    table.refresh()
    await looks.of("directory", deep)
    deep.rmdir()  # on the old one
    await looks.of("directory", deep)
