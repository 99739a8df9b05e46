# SPDX-License-Identifier: LGPL-2.1-or-later
from pathlib import Path

import pytest

from storaged_conn.system.mountinfo import Mounts, parse
from storaged_conn.system.usage import who_uses


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    disk = tmp_path / "class/block/sdb"
    for path, number in ((disk, "8:16"), (disk / "sdb1", "8:17")):
        (path / "holders").mkdir(parents=True)
        (path / "dev").write_text(f"{number}\n")
    (disk / "sdb1/partition").write_text("1\n")
    (disk / "queue").mkdir()
    (tmp_path / "class/block/sdb1").symlink_to("sdb/sdb1")
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n")
    return tmp_path


def use(sys: Path, mounts: Mounts) -> str:
    return who_uses("sdb", mounts, sys, sys / "swaps")


def mounts(device: str) -> Mounts:
    return parse(f"5 1 {device} / /mnt/a rw - ext4 /dev/x rw\n".encode())


def test_nobody_uses_it(sys: Path) -> None:
    assert use(sys, mounts("8:1")) == ""
    assert who_uses("nonesuch", mounts("8:16"), sys, sys / "none") == ""


@pytest.mark.parametrize("device", ["8:16", "8:17"])
def test_a_mount_of_it_or_of_a_partition_is_a_use(sys: Path, device: str) -> None:
    assert use(sys, mounts(device)) == "/mnt/a is mounted from it"


@pytest.mark.parametrize("part", ["sdb", "sdb1"])
def test_what_is_built_on_it_is_a_use(sys: Path, part: str) -> None:
    (sys / "class/block" / part / "holders/dm-0").touch()
    assert use(sys, {}) == "dm-0 is on it"


def test_swap_is_a_use(sys: Path) -> None:
    (sys / "swaps").write_text("Filename Type\n/dev/sdb1 partition 1 0 -2\n")
    assert use(sys, {}) == "/dev/sdb1 is swapped to"
