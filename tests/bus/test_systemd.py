# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is asked of systemd, and what is made of its answers; more is in tests/test_mounters.py."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.bus import wire
from storaged_conn.bus.systemd import (
    MANAGER,
    PATH,
    SYSTEMD,
    SystemdMounter,
    network_options,
    unit_name,
)
from storaged_conn.errors import (
    AttemptError,
    BusyError,
    MissingError,
    RefusedError,
    TimedOutError,
    TroubleError,
)
from storaged_conn.system.mountinfo import MountTable
from storaged_conn.system.mounting import Place
from tests.bus.wires import connected
from tests.live import DEADLINE, private_bus
from tests.systemd import JOB, FakeSystemd, fake_systemd

PATHS: Final = [
    "/",
    "/mnt/a",
    "/mnt/with space",
    "/mnt/with-dash_and.dot:colon",
    "/.hidden/.x",
    "/mnt/é€",
    "/mnt/\\x2d\"'$%&*",
    "/run/storaged-conn/mnt/db2951afcad9097b",
]

needs_escape = pytest.mark.skipif(
    not shutil.which("systemd-escape"), reason="systemd-escape is not installed"
)


def escaped(*paths: str) -> list[str]:
    """Have systemd itself name the units."""
    argv = ["systemd-escape", "--path", "--suffix=mount", "--", *paths]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return done.stdout.strip().split(" ")


@needs_escape
def test_units_are_named_as_systemd_names_them() -> None:
    assert [unit_name(path) for path in PATHS] == escaped(*PATHS)


@needs_escape
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1)
        .filter(lambda name: name not in {".", ".."} and len(name.encode()) < 20)
        .map(lambda name: f"/mnt/{name}"),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_a_place_is_called_systemd_names_it_so(paths: list[str]) -> None:
    assert [unit_name(path) for path in paths] == escaped(*paths)


def test_what_systemd_cannot_name_is_refused() -> None:
    with pytest.raises(RefusedError, match="too long"):
        unit_name("/mnt/" + "é" * 80)
    with pytest.raises(RefusedError, match="UTF-8"):
        unit_name("/mnt/\udcff")


# on a bus

pytestmark = pytest.mark.bus


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with private_bus() as address:
        yield address


class Site(NamedTuple):
    systemd: FakeSystemd
    mounter: SystemdMounter
    place: Place

    @property
    def unit(self) -> str:
        return unit_name(self.place.target)

    async def until_asked(self, member: str) -> None:
        """Return when systemd has been asked for this."""
        async with asyncio.timeout(DEADLINE):
            while (member, self.unit) not in self.systemd.calls:
                self.systemd.asked.clear()
                await self.systemd.asked.wait()


@asynccontextmanager
async def site_on(address: str, ground: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        systemd = await stack.enter_async_context(fake_systemd(address))
        bus = await stack.enter_async_context(connected(address))
        place = Place(str(ground), "point")
        yield Site(systemd, SystemdMounter(bus, ground / "words", MountTable()), place)


@pytest.fixture
async def site(address: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with site_on(address, tmp_path) as site:
        yield site
    assert not list((tmp_path / "words").iterdir())


async def mount_nfs(site: Site, *options: str) -> AttemptError:
    """Mount what cannot be mounted here, so that nothing is mounted."""
    with pytest.raises(AttemptError) as caught:
        await site.mounter.mount("host.invalid:/x", "nonesuch", options, site.place)
    return caught.value


async def test_a_unit_says_all_that_systemd_must_know(site: Site) -> None:
    await mount_nfs(site, "retry=0", "vers=4.2")
    (made,) = site.systemd.made
    assert made.pop("StandardErrorFile").startswith(str(site.place.root))
    assert made == {
        "Description": "Storage connection host.invalid:/x",
        "What": "host.invalid:/x",
        "Type": "nonesuch",
        "Options": "_netdev,retry=0,vers=4.2,nosuid,nodev",
        "TimeoutUSec": 90_000_000,
        "StartLimitIntervalUSec": 0,
        "CollectMode": "inactive-or-failed",
    }


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("/dev/nonesuch", []),
        ("UUID=nonesuch", []),
        ("//host.invalid/x", ["_netdev"]),
        ("admin@1.fs=/", ["_netdev"]),
    ],
)
def test_what_is_on_a_server_is_ordered_so(source: str, options: list[str]) -> None:
    assert network_options(source) == options


async def test_it_is_told_before_a_job_begins_and_a_failed_unit_is_reset(site: Site) -> None:
    site.systemd.failed.add(site.unit)
    await mount_nfs(site)
    members = [member for member, _ in site.systemd.calls]
    assert members == ["ResetFailedUnit", "Subscribe", "StartTransientUnit"]
    await mount_nfs(site)
    assert [member for member, _ in site.systemd.calls[3:]] == [
        "ResetFailedUnit",
        "StartTransientUnit",
    ]
    assert len(site.systemd.made) == 2


async def test_what_is_here_is_not_on_the_network(site: Site) -> None:
    with pytest.raises(AttemptError):
        await site.mounter.mount("/dev/null", "nonesuch", (), site.place)
    (made,) = site.systemd.made
    assert made["Options"] == "nosuid,nodev"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("org.freedesktop.systemd1.UnitExists", BusyError),
        ("org.freedesktop.systemd1.TransactionIsDestructive", BusyError),
        ("org.freedesktop.DBus.Error.AccessDenied", TroubleError),
        ("org.freedesktop.DBus.Error.NoReply", TimedOutError),
    ],
)
async def test_what_systemd_refuses_is_an_error_of_ours(
    site: Site, name: str, error: type[AttemptError]
) -> None:
    site.systemd.refusals[site.unit] = name
    assert type(await mount_nfs(site)) is error


async def test_without_systemd_nothing_is_mounted_and_the_point_goes(
    address: str, tmp_path: Path
) -> None:
    async with connected(address) as bus:
        site = Site(
            FakeSystemd(bus),
            SystemdMounter(bus, tmp_path / "words", MountTable()),
            Place(str(tmp_path), "x"),
        )
        assert isinstance(await mount_nfs(site), TroubleError)
    assert os.listdir(tmp_path) == ["words"]


async def test_a_job_that_nobody_waits_for_any_more_is_ended(site: Site) -> None:
    site.systemd.silent.add(site.unit)
    waiting = asyncio.create_task(mount_nfs(site))
    await site.until_asked("StartTransientUnit")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await site.until_asked("StopUnit")


async def test_nobody_but_systemd_ends_a_job(address: str, site: Site) -> None:
    site.systemd.silent.add(site.unit)
    waiting = asyncio.create_task(mount_nfs(site))
    await site.until_asked("StartTransientUnit")
    async with connected(address) as other:
        body = wire.marshal("uoss", [1, f"{JOB}1", site.unit, "done"])
        other.signal(PATH, MANAGER, "JobRemoved", "uoss", body)
        await other.ask("GetId")
    site.systemd.tell(f"{JOB}7", site.unit, "done")
    site.systemd.tell(f"{JOB}1", site.unit, "failed")
    assert "in silence (failed)" in str(await waiting)


async def test_a_systemd_that_executed_itself_is_listened_to(address: str, tmp_path: Path) -> None:
    async with connected(address) as bus:
        mounter, place = (
            SystemdMounter(bus, tmp_path / "words", MountTable()),
            Place(str(tmp_path), "x"),
        )
        for _ in range(2):
            async with fake_systemd(address) as systemd:
                error = await mount_nfs(Site(systemd, mounter, place))
                assert not isinstance(error, TimedOutError)


async def test_a_unit_that_is_not_there_has_nothing_mounted(site: Site) -> None:
    await site.mounter.unmount(site.place, 1)
    assert site.systemd.calls[-1] == ("StopUnit", site.unit)


async def test_what_is_missing_is_not_asked_for(site: Site) -> None:
    with pytest.raises(MissingError):
        await site.mounter.mount("/nonesuch", "ext4", (), site.place)
    assert not site.systemd.calls


async def test_what_is_no_utf_8_is_refused(site: Site) -> None:
    with pytest.raises(RefusedError, match="UTF-8"):
        await site.mounter.mount("host:/\udcff", "nfs", (), site.place)
    assert SYSTEMD not in str(site.systemd.calls)
