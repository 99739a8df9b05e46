# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the package's postrm leaves, run as dpkg runs it on another root directory."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from storaged_conn.drivers.nvme_registry import OWN
from storaged_conn.system.iscsi_nodes import MARK
from tests.live import DEADLINE
from tests.mounts import cleaned, mounts_below, needs_root, tool

POSTRM: Final = Path(__file__).parents[1] / "debian/postrm"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Give a system on which the service has been at work."""
    for name in (
        "var/lib/storaged-conn/connections.db",
        "var/lib/storaged-conn/connections.db-wal",
        "var/lib/other/file",
        "etc/storaged-conn/storaged-conn.conf",
        "etc/storaged-conn/storaged-conn.conf.d/a b.conf",
        "etc/other",
        "run/storaged-conn/ours/PosixDriver/0123",
        "run/storaged-conn/words/4567",
        "run/systemd/transient/other.mount",
        "srv/data/file",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("0123", "4567"):
        (tmp_path / "run/storaged-conn/mnt" / name).mkdir(mode=0, parents=True)
    with cleaned(tmp_path):
        yield tmp_path


def postrm(root: Path, why: str) -> str:
    """Run it; gives what it told."""
    done = subprocess.run(
        ["sh", POSTRM, why], env=os.environ | {"DPKG_ROOT": str(root)}, cwd="/",
        capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    return done.stderr


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def ours(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*storaged-conn")}


@pytest.mark.parametrize("why", ["remove", "upgrade", "failed-upgrade", "abort-install"])
def test_nothing_but_a_purge_takes_anything_away(root: Path, why: str) -> None:
    before = tree(root) | ours(root)
    assert not postrm(root, why)
    assert tree(root) | ours(root) == before


def test_a_purge_leaves_nothing_of_ours_and_all_else(root: Path) -> None:
    assert not postrm(root, "purge")
    assert not ours(root)
    left = {"var/lib/other/file", "etc/other", "run/systemd/transient/other.mount", "srv/data/file"}
    assert tree(root) == left


def test_a_purge_of_what_is_gone_already_is_silent(tmp_path: Path) -> None:
    assert not postrm(tmp_path, "purge")
    assert not [*tmp_path.iterdir()]


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("how", [("--bind",), ("--rbind",), ("-t", "tmpfs")])
def test_what_is_still_mounted_is_told_and_never_touched(root: Path, how: tuple[str, ...]) -> None:
    source, place = root / "srv/data", root / "run/storaged-conn/mnt/0123"
    tool("mount", *how, source, place)
    (place / "kept").touch()
    unit = "[Unit]\nDescription=Storage connection server:/export\n[Mount]\nWhat=server:/export\n"
    (root / "run/systemd/transient/run-storaged.mount").write_text(unit)
    told = postrm(root, "purge").splitlines()
    left = f"{root}/run/storaged-conn is in use or not empty, and goes with the next boot"
    assert told == [f"storaged-conn: {one}" for one in ("left connected: server:/export", left)]
    assert (place / "kept").exists()
    assert [mount.target for mount in mounts_below(root)] == [str(place)]
    assert (source / "file").exists()
    assert ours(root) == {"run/storaged-conn"}


@pytest.mark.parametrize("place", ["etc/iscsi", "var/lib/iscsi"])
def test_a_session_that_is_left_is_told_and_keeps_its_record(root: Path, place: str) -> None:
    ours, theirs = (root / place / f"nodes/iqn.x/10.9.0.2,3260,1/{name}" for name in ("a", "b"))
    ours.parent.mkdir(parents=True)
    ours.write_text(f"{MARK}iscsi://host/iqn.x\nnode.session.auth.password = secret\n")
    theirs.write_text("node.session.auth.password = secret\n")
    told = "storaged-conn: left logged in, with its node record: iscsi://host/iqn.x\n"
    assert postrm(root, "purge") == told
    assert ours.exists()
    assert theirs.exists()


def test_a_controller_that_is_left_is_told_and_nobodys(root: Path) -> None:
    registry = root / "run/nvme/registry"
    for name, owner in (("nvme0", OWN), ("nvme1", "stas")):
        (registry / name).mkdir(parents=True)
        (registry / name / "owner").write_text(f"{owner}\n")
    (registry / "nvme0" / OWN).write_text("4711 nvme+tcp://host/nqn.2014-08.org.x\n")
    told = "storaged-conn: left connected: nvme+tcp://host/nqn.2014-08.org.x\n"
    assert postrm(root, "purge") == told
    assert [one.name for one in registry.iterdir()] == ["nvme1"]


def test_a_mount_point_that_somebody_has_written_to_is_kept(root: Path) -> None:
    place = root / "run/storaged-conn/mnt/0123"
    place.chmod(0o700)
    (place / "precious").touch()
    assert "run/storaged-conn" in postrm(root, "purge")
    assert (place / "precious").exists()


def test_a_link_in_place_of_the_state_is_not_followed(root: Path) -> None:
    state = root / "var/lib/storaged-conn"
    for file in state.iterdir():
        file.unlink()
    state.rmdir()
    state.symlink_to(root / "srv/data")
    postrm(root, "purge")
    assert not state.is_symlink()
    assert (root / "srv/data/file").exists()
