# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service as its users meet it: with busctl and gdbus alone."""

from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from storaged_conn.names import CONNECTION, MANAGER, OBJECT_MANAGER, PROPERTIES, ROOT, SERVICE
from tests.caller import Service, serving
from tests.mounts import cleaned, make_image, mounts_below, needs_root
from tests.shell import Shell

pytestmark = pytest.mark.bus

ADDED, REMOVED = f"{OBJECT_MANAGER}.InterfacesAdded", f"{OBJECT_MANAGER}.InterfacesRemoved"
CHANGED = f"{PROPERTIES}.PropertiesChanged"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    with cleaned(tmp_path):
        async with serving(tmp_path) as service:
            yield service


@pytest.fixture
def shell(service: Service) -> Shell:
    return Shell(service.address)


@needs_root
@pytest.mark.root
async def test_a_directory_and_an_image_are_managed_and_listed(
    service: Service, shell: Shell
) -> None:
    data, image = service.directory / "data", make_image(service.directory / "disk.img")
    data.mkdir()
    directory = await shell.manage(f"file://{data}", "my data")
    disk = await shell.manage(f"posix+ext4:{image}", "disk", "1", "read-only", "b", "true")
    assert (directory, disk) == (f"{ROOT}/my_20data", f"{ROOT}/disk")
    for path in (directory, disk):
        await shell.wait(path, "connected")

    listed = await shell.listed()
    assert listed["my data"]["connectionInfo"] == {"path": {"type": "s", "data": str(data)}}
    assert listed["disk"]["connected"] is listed["disk"]["managed"] is True
    assert listed["disk"]["lastError"] == 0
    info = listed["disk"]["connectionInfo"]
    assert info["fstype"] == {"type": "s", "data": "ext4"}
    assert info["readOnly"] == {"type": "b", "data": True}
    assert info["source"] == {"type": "s", "data": str(image)}
    place, uri = await shell.get(disk, "MountPoint", "Uri")
    assert uri == f"posix+ext4:{image}"
    (mount,) = mounts_below(service.directory)
    assert (mount.target, mount.read_only) == (place, True)
    assert {"nosuid", "nodev"} <= set(mount.options)
    await shell.unmanage("my data")
    await shell.unmanage("disk")
    assert not {"my data", "disk"} & set(await shell.listed())


@needs_root
@pytest.mark.root
async def test_all_that_happens_is_seen_by_gdbus_monitor(service: Service, shell: Shell) -> None:
    image = make_image(service.directory / "disk.img")
    async with shell.monitor() as monitor:
        disk = await shell.manage(f"posix+ext4:{image}", "my disk")
        await shell.wait(disk, "connected")
        (place,) = await shell.get(disk, "MountPoint")
        await monitor.signal(ROOT, ADDED, f"'{disk}'", "'ConnectionId': <'my disk'>")
        words = ("'Connected': <true>", "'State': <'connected'>", f"'MountPoint': <'{place}'>")
        await monitor.signal(disk, CHANGED, f"'{CONNECTION}'", *words)

        await shell.run("umount", place)
        await monitor.signal(disk, CHANGED, "'StateSince'")
        await shell.wait(disk, "connected")
        (mount,) = mounts_below(service.directory)
        assert mount.target == place

        await shell.unmanage("my disk")
        await monitor.signal(ROOT, REMOVED, f"'{disk}', ['{CONNECTION}']")
        rest = await monitor.signal(ROOT, ADDED, "'State': <'disconnecting'>", str(image))
        assert f"'{ROOT}/unmanaged_2fmount_2d" in rest
        await monitor.signal(ROOT, REMOVED, f"'{ROOT}/unmanaged_2fmount_2d")
    assert not mounts_below(service.directory)
    own = [line for line in monitor.lines if line.startswith(f"{disk}:")]
    assert all(line.startswith(f"{disk}: {CHANGED} (") for line in own)


@needs_root
@pytest.mark.root
async def test_two_ids_on_one_image(service: Service, shell: Shell) -> None:
    uri = f"posix+ext4:{make_image(service.directory / 'disk.img')}"
    async with shell.monitor() as monitor:
        one = await shell.manage(uri, "one")
        two = await shell.manage(uri.replace("/disk", "//./disk").replace("ext4", "EXT4"), "two")
        await shell.wait(one, "connected")
        await shell.wait(two, "connected")
        assert await shell.get(two, "Uri", "SharedWith") == [uri, ["one"]]
        (mount,) = mounts_below(service.directory)

        await shell.unmanage("one")
        await monitor.signal(two, CHANGED, "'SharedWith': <@as []>")
        assert mounts_below(service.directory) == [mount]
        await shell.unmanage("two")
        await monitor.signal(ROOT, REMOVED, f"'{ROOT}/unmanaged_2fmount_2d")
    assert not mounts_below(service.directory)


async def test_what_there_is_can_be_explored(service: Service, shell: Shell) -> None:
    path = await shell.manage(f"file://{service.directory}", "ü 1")
    tree = await shell.busctl("tree", "--list", SERVICE)
    assert tree.splitlines() == ["/", "/org", "/org/storage", ROOT, path]
    manager = await shell.busctl("introspect", SERVICE, ROOT)
    for interface in (MANAGER, OBJECT_MANAGER):
        assert interface in manager
    for row in (
        ".Manage method ssa{sv} o",
        ".Unmanage method sa{sv} -",
        ".List method - a{sa{sv}}",
    ):
        assert row in [" ".join(line.split()[:4]) for line in manager.splitlines()]
    connection = await shell.busctl("introspect", SERVICE, path, CONNECTION)
    flags = {line.split()[0]: line.split()[-1] for line in connection.splitlines()}
    assert (flags[".State"], flags[".Uri"], flags[".Attempts"]) == ("emits-change", "const", "-")
    nested = await shell.gdbus("introspect", "--recurse")
    assert f"node {path} {{" in nested
    assert "readonly s ConnectionId = 'ü 1';" in nested
    ET.fromstring(await shell.gdbus("introspect", "--xml", path=path))
    assert await shell.gdbus("call", "--method", f"{MANAGER}.GetConnection", "'ü 1'") == (
        f"(objectpath '{path}',)"
    )


@pytest.mark.parametrize(
    ("cid", "label"),
    [
        ("with spaces and.dots.", "with_20spaces_20and_2edots_2e"),
        ("é", "_c3_a9"),
        ("1st", "_31st"),
        ("a_b", "a_5fb"),
        ("-- $(x) '\"\\", "_2d_2d_20_24_28x_29_20_27_22_5c"),
        ("..", "_2e_2e"),
        ("x" * 255, "x" * 255),
        ("é" * 127 + "x", "_c3_a9" * 127 + "x"),
    ],
)
async def test_ids_of_any_kind(service: Service, shell: Shell, cid: str, label: str) -> None:
    argv = ("--", "call", SERVICE, ROOT, MANAGER)
    uri = f"file://{service.directory}"
    said = await shell.busctl(*argv, "Manage", "ssa{sv}", uri, cid, "0")
    path = f"{ROOT}/{label}"
    assert said == f'o "{path}"'
    await shell.wait(path, "connected")
    assert cid in await shell.listed()
    assert await shell.get(path, "ConnectionId") == [cid]
    assert not await shell.busctl(*argv, "Unmanage", "sa{sv}", cid, "0")
    assert cid not in await shell.listed()


async def test_what_cannot_be_managed_is_refused_by_name(service: Service, shell: Shell) -> None:
    uri = f"file://{service.directory}"
    await shell.manage(uri, "taken")
    for name, words, *arguments in (
        ("InvalidArgument", "connection_id contains '/'", uri, "a/b", "{}"),
        ("InvalidArgument", "connection_id is empty", uri, '""', "{}"),
        ("InvalidArgument", "connection_id is longer than 255 bytes", uri, "x" * 256, "{}"),
        ("InvalidArgument", "connection_id is longer", uri, "é" * 128, "{}"),
        ("InvalidArgument", "uri contains a user", "nfs://root:secret@server/x", "new", "{}"),
        ("InvalidArgument", "uri contains a user", "file://me@localhost/x", "new", "{}"),
        ("InvalidArgument", "uri has no scheme", "/srv", "new", "{}"),
        ("InvalidArgument", "uri contains an unprintable", '"file:///a\\nb"', "new", "{}"),
        ("InvalidArgument", "uri: write it as posix+FSTYPE", "posix+:/x", "new", "{}"),
        ("InvalidArgument", "options: 'speed' is unknown", uri, "new", '{"speed": <1>}'),
        ("InvalidArgument", "options: 'mountpoint' must be of type s", uri, "new",
         '{"mountpoint": <true>}'),
        ("InvalidArgument", "options: 'mountpoint' must be", uri, "new", '{"mountpoint": <"/x">}'),
        ("InvalidArgument", "options: 'lifetime' must be one of", uri, "new",
         '{"lifetime": <"long">}'),
        ("NotSupported", "uri: scheme 'gopher' is unknown", "gopher://x/y", "new", "{}"),
        ("AlreadyExists", "connection_id 'taken' is in use", "file:///other", "taken", "{}"),
    ):  # fmt: skip
        assert words in await shell.refused(name, "Manage", *arguments)
    assert "secret" not in service.daemon.log
    assert set(await shell.listed()) == {"taken"}


async def test_what_cannot_be_done_is_refused_by_name(service: Service, shell: Shell) -> None:
    path = await shell.manage(f"file://{service.directory}", "mine")
    assert "'x'" in await shell.refused("NotFound", "Unmanage", "x", "{}")
    assert "'x'" in await shell.refused("NotFound", "GetConnection", "x")
    text = await shell.refused("InvalidArgument", "Unmanage", "mine", '{"force": <true>}')
    assert "options: 'force' is unknown" in text
    await shell.refused("InvalidArgument", "Reconnect", '{"now": <true>}', path=path)
    text = await shell.refused("NotSupported", "Discover", f"file://{service.directory}", "{}")
    assert "nothing to discover" in text
    set_it = ("--method", f"{PROPERTIES}.Set", CONNECTION, "Managed", "<false>")
    said = await shell.gdbus("call", *set_it, path=path, status=1)
    assert "org.freedesktop.DBus.Error.PropertyReadOnly" in said
    await shell.busctl("call", SERVICE, f"{ROOT}/none", CONNECTION, "Reconnect", status=1)
    assert set(await shell.listed()) == {"mine"}


async def test_validate_says_what_manage_would_meet(service: Service, shell: Shell) -> None:
    said = await shell.call("Validate", "sa{sv}", f"file://{service.directory}/.", "0")
    assert said == f'a{{sv}} 2 "uri" s "file://{service.directory}" "ok" b true'
    said = await shell.call("Validate", "sa{sv}", f"file://{service.directory}/none", "0")
    for words in ('"ok" b false', '"reason" s "not-found"', f'"{SERVICE}.Error.Missing"'):
        assert words in said
    assert not await shell.listed()
