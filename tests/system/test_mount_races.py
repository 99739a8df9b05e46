# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever is put in the way while the mount child walks it, it acts in no other place."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from storaged_conn.errors import AttemptError
from storaged_conn.system.mounting import Place, bind, mount, prepare, tidy, unmount
from tests.mounts import (
    cleaned,
    lazily_unmount,
    mounts_below,
    needs_root,
    swapping,
    tool,
)

pytestmark = [needs_root, pytest.mark.root]

TIMES: Final = 20
"""A child takes 20 ms, in which the way changes some thousand times."""


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    """Give a root with a way in it, and a victim with a mount and a mount point as we make them."""
    (tmp_path / "root/way").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    for name in ("mounted", "point"):
        (tmp_path / "victim" / name).mkdir(parents=True)
        (tmp_path / "victim" / name).chmod(0)
    with cleaned(tmp_path):
        tool("mount", "-t", "tmpfs", "none", tmp_path / "victim/mounted")
        yield tmp_path


def place(ground: Path, name: str) -> Place:
    return Place(str(ground / "root"), f"way/{name}")


async def tried(act: Callable[[], Awaitable[object]]) -> str:
    try:
        await act()
    except AttemptError as error:
        return type(error).__name__
    return "done"


async def test_a_place_is_prepared_and_tidied_nowhere_else(ground: Path) -> None:
    before = contents(ground)
    outcomes = Counter[str]()
    with swapping(ground / "root/way", ground / "victim"):
        for _ in range(TIMES):
            outcomes[await tried(lambda: prepare("", place(ground, "new/point")))] += 1
            outcomes[await tried(lambda: tidy(place(ground, "point")))] += 1
            assert contents(ground) == before
    assert outcomes.total() == 2 * TIMES


async def test_a_directory_is_mounted_nowhere_else(ground: Path) -> None:
    for _ in range(TIMES):
        with swapping(ground / "root/way", ground / "victim"):
            await tried(lambda: bind(str(ground / "store"), place(ground, "point"), read_only=True))
        *ours, victim = mounts_below(ground)
        assert victim.target == str(ground / "victim/mounted")
        for one in ours:
            assert one.target == place(ground, "point").target
            lazily_unmount(one)


async def test_nothing_else_is_unmounted(ground: Path) -> None:
    where, outcomes = place(ground, "mounted"), Counter[str]()
    for _ in range(TIMES):
        await mount("none", "tmpfs", (), where)
        ours, victim = mounts_below(ground)
        with swapping(ground / "root/way", ground / "victim"):
            outcomes[await tried(partial(unmount, where, ours.id))] += 1
            await tried(partial(unmount, where, victim.id))
        *left, last = mounts_below(ground)
        assert last == victim
        for one in left:
            lazily_unmount(one)
    assert outcomes.total() == TIMES


def contents(ground: Path) -> list[str]:
    return sorted(str(path) for path in (ground / "victim").rglob("*"))
