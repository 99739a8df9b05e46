# SPDX-License-Identifier: LGPL-2.1-or-later
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.core.model import Absent, Present, Target, Topic, Value, check_uri
from storaged_conn.drivers.posix import PosixDriver
from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.mountinfo import MountTable

ROOT = "1 0 254:0 / / rw - ext4 /dev/vda1 rw"


def driver_on(path: Path, *lines: str) -> PosixDriver:
    (path / "table").write_text("".join(f"{line}\n" for line in (ROOT, *lines)))
    table = MountTable(path / "table")
    table.refresh()
    return PosixDriver(table, path / "run", [Path("/srv"), Path("/srv/deep/root")])


@pytest.fixture
def driver(tmp_path: Path) -> PosixDriver:
    return driver_on(tmp_path)


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> PosixDriver:
    return driver_on(tmp_path_factory.mktemp("parser"))


def mount_options(*options: str) -> dict[str, Value]:
    return {"mount-options": options}


# reading


def test_it_serves_every_type(driver: PosixDriver) -> None:
    assert driver.serves("posix+ext4")
    assert not driver.serves("posix")
    assert not driver.serves("file")
    assert driver.schemes() == ("posix+FSTYPE",)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("posix+ext4:/dev/nonesuch", "posix+ext4:/dev/nonesuch"),
        ("POSIX+EXT4:/dev/nonesuch", "posix+ext4:/dev/nonesuch"),
        ("posix+ext4:///dev//nonesuch/", "posix+ext4:/dev/nonesuch"),
        ("posix+ext4:/dev/x/../nonesuch", "posix+ext4:/dev/nonesuch"),
        ("posix+ext4:/im%61ge", "posix+ext4:/image"),
        ("posix+ext4:/a b", "posix+ext4:/a%20b"),
        ("posix+ext4:/é%ff%3F", "posix+ext4:/%C3%A9%FF%3F"),
        ("posix+ceph:server:/export", "posix+ceph:server:/export"),
        ("posix+ceph:[2001:db8::1]:/x", "posix+ceph:%5B2001:db8::1%5D:/x"),
        ("posix+cifs://server//share/", "posix+cifs://server/share"),
        ("posix+fuse.sshfs:user@host:dir", "posix+fuse.sshfs:user@host:dir"),
    ],
)
def test_the_same_storage_written_in_two_ways_is_one_target(
    driver: PosixDriver, written: str, canonical: str
) -> None:
    assert driver.parse(written, {}) == Target(canonical)
    assert driver.parse(canonical, {}) == Target(canonical)


@pytest.mark.parametrize(
    "uri",
    [
        "posix+:/dev/nonesuch",
        "posix+ext4,vfat:/dev/nonesuch",
        "posix+-t:/dev/nonesuch",
        "posix+../ext4:/dev/nonesuch",
        "posix+auto:/dev/nonesuch",
        "posix+proc:proc",
        "posix+tmpfs:tmpfs",
        "posix+none:/dev/nonesuch",
        "posix+noext4:/dev/nonesuch",  # mount(8): any type but ext4
        "posix+fuse:sh#x",
        "posix+fuse.sh:/tmp/x",  # mount.fuse(8) would run sh
        "posix+fuse3:x",
        "posix+" + "x" * 33 + ":/dev/nonesuch",
        "posix+ext4:",
        "posix+ext4:-o",
        "posix+ext4:%2do",
        "posix+ext4:/dev/none%00such",
        "posix+ext4:/dev/none%0asuch",
        "posix+ext4:/dev/none\x7fsuch",
        "posix+ext4:/dev/nonesuch?x=y",
        "posix+ext4:/dev/nonesuch#x",
        "posix+ext4:LABEL=root",
        "posix+ext4:UUID=1234",
        "posix+ext4:/" + "x" * 4095,
    ],
)
def test_what_is_no_storage_is_refused(driver: PosixDriver, uri: str) -> None:
    with pytest.raises(InvalidArgumentError, match="uri"):
        driver.parse(uri, {})


@pytest.mark.parametrize(
    "option",
    [
        "",
        "-o",
        "--bind",
        "noatime,suid",
        "noatime\nsuid",
        "noatime\0",
        "uid=0,suid",
        "uid=0\nsuid",
        'context="x"',
        "context='x'",
        "a=b=c",
        "a=b\\,suid",
        "a b",
        "uid=\x7f",
        "uid=\u202e",
        "suid",
        "SUID",
        "dev",
        "ro",
        "rw",
        "bind",
        "rbind",
        "move",
        "remount",
        "loop",
        "loop=/dev/loop0",
        "offset=512",
        "make-rshared",
        "shared",
        "user",
        "users",
        "owner",
        "group",
        "defaults",
        "x-mount.mkdir",
        "X-mount.subdir=x",
        "x-systemd.automount",
        "helper=sh",
        "uhelper=udisks2",
        "verity.hashdevice=/x",
        "credentials=/root/x",
        "cred=/root/x",
        "password=secret",
        "Pass=secret",
        "passwd=secret",
        "secret=secret",
        "secretfile=/root/x",
        "username=user%secret",
    ],
)
def test_an_option_that_is_another_or_undoes_ours_is_refused(
    driver: PosixDriver, option: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"mount-options|read-only"):
        driver.parse("posix+ext4:/dev/nonesuch", mount_options(option))


@pytest.mark.parametrize("fstype", ["fuse.sshfs", "sshfs"])
def test_a_fuse_program_gets_no_option_that_names_a_command(
    driver: PosixDriver, fstype: str
) -> None:
    uri = f"posix+{fstype}:host:dir"
    assert driver.parse(uri, mount_options("reconnect", "uid=7")).options
    for option in ("ssh_command=sh", "ProxyCommand=sh", "sftp_server=/x", "F=/x"):
        with pytest.raises(InvalidArgumentError):
            driver.parse(uri, mount_options(option))


def test_options_in_another_order_are_the_same_target(driver: PosixDriver) -> None:
    first = driver.parse(
        "posix+ext4:/dev/nonesuch", mount_options("noatime", "commit=5", "noatime")
    )
    second = driver.parse("posix+ext4:/dev/nonesuch", mount_options("commit=5", "noatime"))
    assert first == second
    assert first != driver.parse("posix+ext4:/dev/nonesuch", mount_options("commit=6", "noatime"))


def test_an_option_with_two_values_is_refused(driver: PosixDriver) -> None:
    with pytest.raises(InvalidArgumentError, match="twice"):
        driver.parse("posix+ext4:/dev/nonesuch", mount_options("commit=5", "commit=6"))


def test_defaults_that_are_written_out_are_the_same_target(driver: PosixDriver) -> None:
    given: dict[str, Value] = {"read-only": False, "mount-options": ()}
    assert driver.parse("posix+ext4:/dev/nonesuch", given) == Target("posix+ext4:/dev/nonesuch")


@pytest.mark.parametrize(
    "point",
    [
        "",
        "srv/x",
        "/",
        "/srv",
        "/srv/",
        "/srv/x/",
        "/srv//x",
        "/srv/./x",
        "/srv/../etc",
        "/srv/x/..",
        "//srv/x",
        "/srvx/y",
        "/etc",
        "/srv/a\nb",
        "/srv/a\0b",
        "/srv/" + "x" * 256,
        "/srv/" + "x/" * 2048 + "x",
    ],
)
def test_a_mount_point_outside_the_roots_is_refused(driver: PosixDriver, point: str) -> None:
    with pytest.raises(InvalidArgumentError, match="mountpoint"):
        driver.parse("posix+ext4:/dev/nonesuch", {"mountpoint": point})


def test_the_place_is_below_the_nearest_root(driver: PosixDriver, tmp_path: Path) -> None:
    def place(options: dict[str, Value]) -> tuple[str, str]:
        found = driver.place(driver.parse("posix+ext4:/dev/nonesuch", options))
        return found.root, found.path

    assert place({"mountpoint": "/srv/a/b"}) == ("/srv", "a/b")
    assert place({"mountpoint": "/srv/deep/root/x"}) == ("/srv/deep/root", "x")
    root, key = place({})
    assert root == str(tmp_path / "run/mnt")
    assert place({}) == (root, key)
    assert place({"read-only": True}) != (root, key)


@given(source=st.text(min_size=1), fstype=st.sampled_from(["ext4", "ceph", "cifs", "9p"]))
def test_whatever_is_accepted_is_canonical(parser: PosixDriver, source: str, fstype: str) -> None:
    try:
        target = parser.parse(f"posix+{fstype}:{source}", {})
    except InvalidArgumentError:
        return
    assert check_uri(target.uri) == f"posix+{fstype}"
    assert target.uri.isascii()
    assert parser.parse(target.uri, {}) == target


@given(st.text(min_size=1))
def test_no_accepted_option_smuggles_in_another(parser: PosixDriver, option: str) -> None:
    try:
        target = parser.parse("posix+ext4:/dev/nonesuch", mount_options(option))
    except InvalidArgumentError:
        return
    assert target.option("mount-options") == (option,)
    assert not set(option) & set(", \n\0\\\"'")
    assert not option.startswith("-")


def test_its_topics_are_its_place_its_source_and_an_image_that_may_come(
    driver: PosixDriver,
) -> None:
    image = driver.parse("posix+ext4:/var/x.img", {"mountpoint": "/srv/x"})
    assert driver.topics(image) == {
        Topic("mount", "/srv/x"),
        Topic("source", "/var/x.img"),
        Topic("directory", "/var/x.img"),
    }
    server = driver.parse("posix+ceph:host:/x", {"mountpoint": "/srv/x"})
    assert driver.topics(server) == {Topic("mount", "/srv/x"), Topic("source", "host:/x")}


# looking


async def seen(driver: PosixDriver, uri: str, options: dict[str, Value] | None = None) -> object:
    found = await driver.observe(driver.parse(uri, options or {}))
    return found.name if isinstance(found, Present) else found


async def test_an_unreadable_table_is_unknown(tmp_path: Path) -> None:
    driver = PosixDriver(MountTable(tmp_path / "none"), tmp_path / "run", [])
    assert await seen(driver, "posix+ext4:/dev/nonesuch") is None
    assert list(driver.foreign()) == []


async def test_what_somebody_else_mounted_is_adopted(tmp_path: Path) -> None:
    driver = driver_on(tmp_path, "7 1 254:16 / /data rw,noatime - ext4 /dev/nonesuch rw,errors=x")
    found = await driver.observe(driver.parse("posix+ext4:/dev/nonesuch", {}))
    assert found == Present(
        "mount-7",
        ours=False,
        mountpoint="/data",
        info={
            "fstype": "ext4",
            "source": "/dev/nonesuch",
            "options": ("rw", "noatime", "errors=x"),
            "readOnly": False,
        },
    )


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("7 1 254:16 / /data rw - xfs /dev/nonesuch rw", {}),
        ("7 1 254:16 / /data rw - ext4 /dev/vdc rw", {}),
        ("7 1 254:16 /sub /data rw - ext4 /dev/nonesuch rw", {}),
        ("7 1 254:16 / /data ro - ext4 /dev/nonesuch rw", {}),
        ("7 1 254:16 / /data rw - ext4 /dev/nonesuch ro", {}),
        ("7 1 254:16 / /data rw - ext4 /dev/nonesuch rw", {"read-only": True}),
        ("7 1 254:16 / /data rw - ext4 /dev/nonesuch rw", {"mountpoint": "/srv/x"}),
        ("7 1 254:16 / /data rw - ext4 /dev/nonesuch rw", {"mount-options": ("noatime",)}),
        ("7 1 254:16 / /data rw - ext4 /dev/nonesuch rw\n8 7 0:9 / /data rw - tmpfs x rw", {}),
    ],
)
async def test_what_is_not_the_same_is_not_adopted(
    tmp_path: Path, line: str, options: dict[str, Value]
) -> None:
    driver = driver_on(tmp_path, line)
    assert await seen(driver, "posix+ext4:/dev/nonesuch", options) == Absent()


async def test_a_mount_at_the_wanted_place_is_adopted_whatever_its_options(tmp_path: Path) -> None:
    driver = driver_on(tmp_path, "7 1 254:16 / /srv/x ro,suid - ext4 /dev/nonesuch rw")
    assert await seen(driver, "posix+ext4:/dev/nonesuch", {"mountpoint": "/srv/x"}) == "mount-7"


async def test_what_is_storage_is_listed_and_can_be_adopted(tmp_path: Path) -> None:
    lines = {
        "posix+ext4:/dev/nonesuch": "2 1 254:16 / /home rw - ext4 /dev/nonesuch rw",
        "posix+ceph:host:/x": "3 1 0:40 / /mnt/x rw - ceph host:/x rw",
        "posix+fuse.sshfs:u@host:": "4 1 0:41 / /mnt/y rw - fuse.sshfs u@host: rw",
        "posix+cifs://host/share": "5 1 0:42 / /mnt/z rw - cifs //host/share rw",
        "posix+vfat:/dev/sdb1": "6 1 8:17 / /run/media/u/STICK rw - vfat /dev/sdb1 rw",
    }
    driver = driver_on(tmp_path, *lines.values())
    listed = {foreign.uri: foreign.present for foreign in driver.foreign()}
    assert listed.keys() == lines.keys()
    for uri, present in listed.items():
        assert await driver.observe(driver.parse(uri, {})) == present


def test_the_systems_own_mounts_are_not_listed(tmp_path: Path) -> None:
    driver = driver_on(
        tmp_path,
        "2 1 254:1 / /boot rw - ext4 /dev/vda2 rw",
        "3 2 254:2 / /boot/efi rw - vfat /dev/vda3 rw",
        "4 1 254:3 / /var rw - ext4 /dev/vda4 rw",
        "5 4 7:1 / /var/lib/docker/x rw - ext4 /dev/loop1 rw",
        "6 1 7:2 / /snap/core/1 ro - squashfs /dev/loop2 ro",
        "7 1 0:5 / /run rw - tmpfs tmpfs rw",
        "8 1 0:6 / /data rw - tmpfs /dev/shm rw",
        "9 1 254:16 /sub /bound rw - ext4 /dev/nonesuch rw",
        "10 1 254:16 / /hidden rw - ext4 /dev/nonesuch rw",
        "11 10 0:7 / /hidden rw - tmpfs x rw",
        "12 1 0:8 / /auto rw - autofs systemd-1 rw",
        "13 1 0:9 / /home/u/doc rw - fuse.portal portal rw",
    )
    assert list(driver.foreign()) == []


def test_what_cannot_be_managed_by_its_name_is_not_listed(tmp_path: Path) -> None:
    driver = driver_on(tmp_path, "2 1 0:40 / /x rw - ceph a\\012b:/x rw")
    assert list(driver.foreign()) == []
