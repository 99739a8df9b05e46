# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from storaged_conn.core.model import Topic
from storaged_conn.sources.mounts import ANY, PAUSE, MountSource
from storaged_conn.system.mountinfo import MountTable
from tests.mounts import cleaned, make_image, needs_root, tool
from tests.sources.looks import Looks

pytestmark = [needs_root, pytest.mark.root]


class CountingTable(MountTable):
    """Counts how often it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def refresh(self) -> None:
        self.reads += 1
        super().refresh()


class CountingSource(MountSource):
    """Counts how often the loop calls it."""

    calls = 0

    def _changed(self) -> None:
        self.calls += 1
        super()._changed()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "point").mkdir()
    with cleaned(tmp_path):
        yield tmp_path


@pytest.fixture
def table() -> CountingTable:
    return CountingTable()


@pytest.fixture
async def looks(table: MountTable) -> AsyncIterator[Looks]:
    source, looks = MountSource(table), Looks()
    source.start(looks, looks.resync)
    yield looks
    source.close()
    source.close()


async def run(*argv: str | Path) -> None:
    await asyncio.to_thread(tool, *argv)


async def test_what_is_mounted_and_unmounted_is_said_with_its_place_and_source(
    ground: Path, looks: Looks
) -> None:
    image, point = make_image(ground / "image"), ground / "point"
    await run("mount", "-t", "ext4", image, point)
    assert await looks.of("mount", point) is False
    await run("umount", point)
    await looks.until(lambda: (Topic("source", str(image)), True) in looks.heard)
    assert await looks.of("mount", point) is True


async def test_a_remount_is_news_but_no_hint(ground: Path, looks: Looks) -> None:
    point = ground / "point"
    await run("mount", "-t", "tmpfs", "x", point)
    assert await looks.of("mount", point) is False
    await run("mount", "-o", "remount,ro", point)
    assert await looks.of("mount", point) is False


async def test_the_table_is_up_to_date_when_a_look_is_asked_for(
    ground: Path, table: MountTable
) -> None:
    point, seen = str(ground / "point"), asyncio.get_running_loop().create_future()

    def look(topic: Topic, *, hint: bool) -> None:
        if topic == Topic("mount", point) and not seen.done():
            seen.set_result((hint, table.at(point)))

    source = MountSource(table)
    source.start(look, lambda: None)
    try:
        await run("mount", "-t", "tmpfs", "x", point)
        hint, mount = await asyncio.wait_for(seen, 20)
    finally:
        source.close()
    assert (hint, mount and mount.source) == (False, "x")


async def test_each_change_is_said_once_for_the_list_of_all(ground: Path, looks: Looks) -> None:
    await run("mount", "-t", "tmpfs", "x", ground / "point")
    await looks.until(lambda: (ANY, False) in looks.heard)
    assert looks.heard.index((ANY, False)) == len(looks.heard) - 1


async def test_a_burst_is_read_a_few_times_and_its_end_is_never_missed(
    ground: Path, looks: Looks, table: CountingTable
) -> None:
    await run("mount", "-t", "tmpfs", "x", ground / "point")
    await looks.of("mount", ground / "point")
    table.reads, begun = 0, time.monotonic()
    script = 'for i in $(seq 100); do mount -o remount,size=$((i+1))m "$0"; done; umount "$0"'
    await run("sh", "-c", script, ground / "point")
    await looks.until(lambda: (Topic("mount", str(ground / "point")), True) in looks.heard)
    assert table.reads <= 2 + (time.monotonic() - begun) / PAUSE
    assert table.at(str(ground / "point")) is None


async def test_what_another_reader_found_first_is_said_all_the_same(
    ground: Path, looks: Looks, table: MountTable
) -> None:
    tool("mount", "-t", "tmpfs", "x", ground / "point")
    table.refresh()  # a driver does so, before the loop hears of the event
    assert (Topic("mount", str(ground / "point")), False) in looks.heard


async def test_an_idle_source_does_nothing(ground: Path, table: MountTable) -> None:
    source, looks = CountingSource(table), Looks()
    source.start(looks, looks.resync)
    try:
        await run("mount", "-t", "tmpfs", "x", ground / "point")
        await looks.of("mount", ground / "point")
        source.calls = 0
        for _ in range(1000):
            await asyncio.sleep(0)
        assert source.calls < 100  # others may mount on this machine meanwhile
    finally:
        source.close()


async def test_nothing_is_said_before_the_start_and_after_the_end(
    ground: Path, table: MountTable
) -> None:
    source, looks = MountSource(table), Looks()
    before = len(os.listdir("/proc/self/fd"))
    source.start(looks, looks.resync)
    assert looks.heard == []
    assert table.mounts
    source.close()
    tool("mount", "-t", "tmpfs", "x", ground / "point")
    table.refresh()
    assert looks.heard == []
    assert len(os.listdir("/proc/self/fd")) == before
