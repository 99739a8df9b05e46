# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian package: installed, upgraded, removed and purged by apt, without a network."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from storaged_conn.names import MANAGER, ROOT, SERVICE
from tests.caller import Caller, calling
from tests.mounts import make_image
from tests.shell import Shell
from tests.vm.guest.conftest import STATE
from tests.vm.guest.machine import Machine
from tests.vm.guest.nvmet import Target, controllers
from tests.vm.guest.steps import connected
from tests.vm.guest.units import SYSTEM_BUS, UNIT, show, start, tool

PACKAGE: Final = "storaged-conn"
(DEB,) = Path("/parcel/deb").glob("*.deb")

IMAGE: Final = STATE / "package.img"
URI: Final = f"posix+ext4:{IMAGE}"

NOBODY: Final = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")

PLACES: Final = ("/etc", "/run", "/usr", "/var/cache", "/var/lib")
"""Where packages have files. Source: Filesystem Hierarchy Standard 3.0."""

NQN: Final = "nqn.2026-01.org.example:package"

RECORDS: Final = Path("/var/lib/storaged-conn/connections.db")
SETTINGS: Final = Path("/etc/storaged-conn/storaged-conn.conf")


def apt(*argv: str | Path) -> str:
    """Run apt-get, which asks nothing; gives what it and the maintainer scripts said."""
    quiet = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "-qq")
    return tool("sh", "-c", 'exec "$@" 2>&1', "sh", *quiet, *argv)


def version() -> str:
    return tool("dpkg-query", "--show", "--showformat=${Version}", PACKAGE)


def files() -> set[str]:
    """Give what bears our name, but for what only the tests and the administrator put there."""
    named = ("-iname", "*storaged[-_.]conn*", "-o", "-iname", "*storage.connection*")
    found = tool(
        "find", *PLACES, "-xdev", "-path", STATE, "-prune", "-o", "(", *named, ")", "-print"
    )
    return {one for one in found.split() if not one.endswith((".service.d", "storaged-conn.list"))}


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """Give a package of a newer version, the same otherwise."""
    tree, deb = tmp_path / "tree", tmp_path / "newer.deb"
    tool("dpkg-deb", "--raw-extract", DEB, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("^(Version: .*)$", r"\1+newer", control.read_text(), flags=re.M))
    tool("dpkg-deb", "-Znone", "--build", tree, deb)
    return deb


def test_the_service_that_runs_is_the_package_s_and_nothing_in_it_was_changed() -> None:
    assert (show("ActiveState"), show("UnitFileState")) == ("active", "enabled")
    words = Path(f"/proc/{show('MainPID')}/cmdline").read_text().split("\0")
    assert words[:3] == ["/usr/bin/python3", "-I", "/usr/bin/storaged-connd"]
    # dpkg knows the unit's directory by one name, and systemd by one or the other.
    unit = f"*/systemd/system/{Path(show('FragmentPath')).name}"
    for file in (words[2], unit, "/usr/bin/storaged-connctl"):
        assert tool("dpkg", "--search", file).startswith(f"{PACKAGE}: ")
    assert not tool("dpkg", "--verify", PACKAGE)
    assert not tool("dpkg", "--audit")


async def test_nobody_is_refused_by_the_error_for_it(shell: Shell) -> None:
    start()
    where = ("--system", "--dest", SERVICE, "--object-path", ROOT)
    call = ("gdbus", "call", *where, "--method", f"{MANAGER}.Manage", "file:///srv", "theirs", "{}")
    said = await shell.run(*NOBODY, *call, status=1)
    assert "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" in said
    assert (await shell.call("List")).startswith("a{sa{sv}} ")


async def test_the_journal_has_fields_and_explains_itself(caller: Caller, tmp_path: Path) -> None:
    await caller.manage(f"file://{tmp_path}", "told of")
    await caller.until("told of", State="connected")
    tool("journalctl", "--sync")
    journal = ("journalctl", f"--unit={UNIT}", "STORAGE_CID=told of", "--no-pager")
    (line,) = tool(*journal, "--output=json").splitlines()
    found = json.loads(line)
    assert (found["STORAGE_STATE"], found["PRIORITY"]) == ("connected", "6")
    assert (found["STORAGE_URI"], found["STORAGE_SCHEME"]) == (f"file://{tmp_path}", "file")
    assert f"Storage connection file://{tmp_path} is up" in tool(*journal, "--catalog")


async def test_an_upgrade_restarts_the_service_and_leaves_what_is_connected(
    caller: Caller, newer: Path, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "disk.img")
    await caller.manage(f"posix+ext4:{image}", "disk")
    place = (await caller.until("disk", State="connected"))["MountPoint"]
    before, device, pid = version(), os.stat(place).st_dev, show("MainPID")
    with (Path(place) / "open").open("w") as file:
        apt("install", newer)
        file.write("and written to all the while")
    assert version() == f"{before}+newer"
    assert (show("ActiveState"), show("MainPID") != pid) == ("active", True)
    async with calling(SYSTEM_BUS) as again:
        found = await again.until("disk", State="connected")
        assert (found["MountPoint"], os.stat(place).st_dev) == (place, device)
        assert found["Reconnects"] == 0


@pytest.fixture(scope="module")
def subsystem() -> Iterator[str]:
    """Serve an NVMe subsystem; gives its URI."""
    with Machine(105) as machine, Target() as target:
        port, one = target.port(machine), target.subsystem(NQN)
        port.serve(one)
        yield port.uri(one)


@pytest.mark.last
async def test_removed_it_says_what_stays_and_installed_again_it_has_it_back(
    subsystem: str,
) -> None:
    make_image(IMAGE)
    start()
    async with calling(SYSTEM_BUS) as caller:
        await caller.manage(URI, "kept")
        await caller.manage(subsystem, "nvme")
        place = (await caller.until("kept", State="connected"))["MountPoint"]
        controller = (await connected(caller, "nvme"))["ConnectionInfo"]["controller"]
    device = os.stat(place).st_dev
    said = apt("remove", PACKAGE)
    assert "stay as they are" in said
    assert URI in said
    assert subsystem in said
    assert controllers() == {controller: NQN}
    assert show("LoadState") == "not-found"
    assert os.stat(place).st_dev == device
    assert RECORDS.exists()
    apt("install", DEB)
    assert show("ActiveState") == "active"
    async with calling(SYSTEM_BUS) as caller:
        found = await caller.until("kept", State="connected")
        assert (found["MountPoint"], found["Managed"], os.stat(place).st_dev) == (
            place,
            True,
            device,
        )
        found = await connected(caller, "nvme")
        assert found["ConnectionInfo"]["controller"] == controller


@pytest.mark.last
def test_purged_it_leaves_only_what_it_tells_of(subsystem: str) -> None:
    SETTINGS.parent.mkdir(exist_ok=True)
    SETTINGS.write_text("[Audit]\n")
    (place,) = Path("/run/storaged-conn/mnt").iterdir()
    said = apt("purge", PACKAGE)
    assert "storaged-conn: left connected: /dev/loop" in said or str(IMAGE) in said, said
    assert f"storaged-conn: left connected: {subsystem}\n" in said
    assert "goes with the next boot" in said
    assert os.path.ismount(place)
    assert files() == {"/run/storaged-conn"}
    assert [*Path("/run/storaged-conn").rglob("*")][:2] == [place.parent, place]
    tool("umount", place)
    assert set(controllers().values()) == {NQN}
    tool("nvme", "disconnect-all")  # nobody owns it any more
    assert not controllers()
    assert not tool("systemctl", "list-units", "--all", "--plain", "--no-legend", UNIT)
