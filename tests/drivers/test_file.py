# SPDX-License-Identifier: LGPL-2.1-or-later
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.core.model import Absent, Present, Target, Topic, check_uri
from storaged_conn.drivers.file import FileDriver
from storaged_conn.errors import InvalidArgumentError, MissingError, TroubleError
from storaged_conn.system.mountinfo import MountTable


@pytest.fixture
def driver(tmp_path: Path) -> FileDriver:
    return FileDriver(MountTable(), tmp_path / "run", [Path("/srv")])


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> FileDriver:
    return FileDriver(MountTable(), tmp_path_factory.mktemp("run"), [])


def test_it_serves_file_and_nothing_else(driver: FileDriver) -> None:
    assert driver.schemes() == ("file",)
    assert driver.serves("file")
    assert not driver.serves("posix+file")


@pytest.mark.parametrize(
    "uri",
    [
        "file:///a/b",
        "file:/a/b",
        "FILE://localhost/a/b",
        "file:////a//b/",
        "file:/a/./x/../b",
        "file:///%61/b",
    ],
)
def test_a_directory_written_in_many_ways_is_one_target(driver: FileDriver, uri: str) -> None:
    assert driver.parse(uri, {}) == Target("file:///a/b")


@pytest.mark.parametrize(
    "uri",
    [
        "file:",
        "file://",
        "file:a/b",
        "file://host/a",
        "file://localhost",
        "file:///a?b",
        "file:///a#b",
        "file:///a%00b",
        "file:///a%0Ab",
        "file:///" + "x" * 4095,
    ],
)
def test_what_is_no_local_directory_is_refused(driver: FileDriver, uri: str) -> None:
    with pytest.raises(InvalidArgumentError, match="uri"):
        driver.parse(uri, {})


def test_read_only_needs_a_mount_point(driver: FileDriver) -> None:
    with pytest.raises(InvalidArgumentError, match="read-only"):
        driver.parse("file:///a", {"read-only": True})
    assert driver.parse("file:///a", {"read-only": True, "mountpoint": "/srv/x"}).options


@given(st.text(min_size=1))
def test_whatever_is_accepted_is_canonical(parser: FileDriver, path: str) -> None:
    try:
        target = parser.parse(f"file:///{path}", {})
    except InvalidArgumentError:
        return
    assert check_uri(target.uri) == "file"
    assert parser.parse(target.uri, {}) == target


def test_its_topics_are_the_directory_and_the_place(driver: FileDriver) -> None:
    assert driver.topics(driver.parse("file:///a%20b", {})) == {Topic("directory", "/a b")}
    assert driver.topics(driver.parse("file:///a", {"mountpoint": "/srv/x"})) == {
        Topic("directory", "/a"),
        Topic("mount", "/srv/x"),
    }


async def test_a_directory_that_is_there_is_connected_and_not_ours(
    driver: FileDriver, tmp_path: Path
) -> None:
    target = driver.parse(f"file://{tmp_path}", {})
    found = await driver.connect(target)
    assert found == await driver.observe(target)
    assert found.ours is False
    assert found.info == {"path": str(tmp_path)}
    await driver.validate(target)
    await driver.disconnect(target, found)
    assert await driver.observe(target) == found


async def test_a_directory_behind_a_link_is_there(driver: FileDriver, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    target = driver.parse(f"file://{tmp_path}/link", {})
    assert isinstance(await driver.observe(target), Present)


@pytest.mark.parametrize("path", ["none", "none/none", "file", "file/none", "-x"])
async def test_what_is_no_directory_is_missing(
    driver: FileDriver, tmp_path: Path, path: str
) -> None:
    (tmp_path / "file").write_text("")
    target = driver.parse(f"file://{tmp_path}/{path}", {})
    assert await driver.observe(target) == Absent()
    with pytest.raises(MissingError):
        await driver.connect(target)
    with pytest.raises(MissingError):
        await driver.validate(target)
    await driver.disconnect(target, None)


async def test_a_directory_that_cannot_be_looked_at_is_unknown(
    driver: FileDriver, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    target = driver.parse(f"file://{tmp_path}/loop/x", {})
    assert await driver.observe(target) is None
    with pytest.raises(TroubleError):
        await driver.connect(target)


async def test_names_of_any_bytes_are_found(driver: FileDriver, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff% ?#\xc3\xa9")
    (tmp_path / name).mkdir()
    target = driver.parse(f"file://{tmp_path}/%ff%25%20%3f%23é", {})
    assert isinstance(await driver.observe(target), Present)


def test_there_is_nothing_foreign(driver: FileDriver) -> None:
    assert list(driver.foreign()) == []
