# SPDX-License-Identifier: LGPL-2.1-or-later
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged_conn.system.devices import device_node, links_to, names_of
from tests.mounts import needs_root


@pytest.fixture
def link() -> Iterator[Path]:
    path = Path("/dev/storaged-conn-test")
    yield path
    path.unlink(missing_ok=True)


@needs_root
@pytest.mark.root
def test_links_in_dev_are_followed_and_no_others(link: Path, tmp_path: Path) -> None:
    link.symlink_to("null")
    assert device_node(str(link)) == "/dev/null"
    link.unlink()
    link.symlink_to(tmp_path)
    assert device_node(f"{link}/x") == f"{link}/x"
    assert device_node("/dev/disk/by-uuid/nowhere") == "/dev/disk/by-uuid/nowhere"
    assert device_node(str(tmp_path)) == str(tmp_path)
    assert device_node("/dev/../etc/passwd") == "/dev/../etc/passwd"


@needs_root
@pytest.mark.root
def test_a_link_to_itself_ends(link: Path) -> None:
    link.symlink_to(link.name)
    assert device_node(str(link)) == str(link)


def test_a_source_that_is_no_device_has_one_name() -> None:
    for source in ("host:/x", "", "tmpfs", "//host/share", "/srv/x"):
        assert names_of(source) == ((source,), "")
    assert names_of("/dev/null") == (("/dev/null",), "")


def test_udevs_links_are_read_from_its_database(tmp_path: Path) -> None:
    (tmp_path / "b8:1").write_text("S:disk/by-uuid/1-2\nS:disk/by-id/x\nI:12\nE:ID_FS_TYPE=ext4\n")
    assert links_to("8:1", tmp_path) == ["/dev/disk/by-uuid/1-2", "/dev/disk/by-id/x"]
    assert links_to("8:2", tmp_path) == []
