# SPDX-License-Identifier: LGPL-2.1-or-later
from pathlib import Path

from storaged_conn.drivers.marks import PLANNED, Marks
from storaged_conn.system.mountinfo import Mount, parse


def mount(line: str = "7 1 8:1 /dir /x rw - ext4 /dev/sda1 rw") -> Mount:
    (found,) = parse(line.encode()).values()
    return found


def test_a_plan_and_a_mark_survive_a_restart(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "ours")
    marks.plan("planned")
    marks.plan("kept")
    marks.keep("kept", mount())
    again = Marks(tmp_path / "ours")
    assert again.get("planned") is PLANNED
    kept = again.get("kept")
    assert kept is not None
    assert kept.is_of(mount())
    assert again.has(mount())
    assert again.get("other") is None


def test_what_was_dropped_is_forgotten_here_and_after_a_restart(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.plan("key")
    marks.drop("key")
    marks.drop("key")
    assert marks.get("key") is None
    assert Marks(tmp_path).get("key") is None


def test_a_mark_that_was_cut_off_is_a_plan(tmp_path: Path) -> None:
    for number, text in enumerate(("", "[7", "[7]", "{}", '["x","","","","",""]', "7", "null")):
        (tmp_path / f"key{number}").write_text(text)
        assert Marks(tmp_path).get(f"key{number}") is PLANNED


def test_a_mount_is_the_same_when_its_directory_is_renamed_and_no_other_way(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.keep("key", mount())
    assert marks.has(mount("7 1 8:1 /renamed /x rw - ext4 /dev/sda1 rw"))
    assert marks.has(mount("7 1 8:1 /dir //deleted /x rw - ext4 /dev/sda1 rw".replace(" //", "//")))
    for other in (
        "8 1 8:1 /dir /x rw - ext4 /dev/sda1 rw",
        "7 1 8:2 /dir /x rw - ext4 /dev/sda1 rw",
        "7 1 8:1 /dir /y rw - ext4 /dev/sda1 rw",
        "7 1 8:1 /dir /x rw - ext3 /dev/sda1 rw",
        "7 1 8:1 /dir /x rw - ext4 /dev/sdb1 rw",
    ):
        assert not marks.has(mount(other))


def test_marks_are_nobody_elses_business(tmp_path: Path) -> None:
    Marks(tmp_path / "ours")
    assert (tmp_path / "ours").stat().st_mode & 0o077 == 0
