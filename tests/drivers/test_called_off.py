# SPDX-License-Identifier: LGPL-2.1-or-later
"""A mount that PID 1 was still making when the service was killed, and what the next run does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from storaged_conn.bus.systemd import SystemdMounter, unit_name
from storaged_conn.core.model import Absent, Target
from storaged_conn.drivers.mount import key_of
from storaged_conn.drivers.posix import PosixDriver
from storaged_conn.system.mountinfo import MountTable
from tests.bus.wires import connected
from tests.live import DEADLINE, private_bus
from tests.mounts import cleaned, make_image, mounts_below, needs_root
from tests.systemd import FakeSystemd, fake_systemd

pytestmark = [needs_root, pytest.mark.root, pytest.mark.bus]


class Site(NamedTuple):
    """What the next run has, while PID 1 is at work."""

    systemd: FakeSystemd
    driver: PosixDriver
    target: Target
    unit: str
    ground: Path


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with private_bus() as address, cleaned(tmp_path):
        async with AsyncExitStack() as stack:
            systemd = await stack.enter_async_context(fake_systemd(address))
            buses = [await stack.enter_async_context(connected(address)) for _ in range(2)]
            runs = [SystemdMounter(bus, tmp_path / "words", MountTable()) for bus in buses]
            drivers = [PosixDriver(MountTable(), tmp_path / "run", (), one) for one in runs]
            image = make_image(tmp_path / "image")
            target = drivers[0].parse(f"posix+ext4:{image}", {})
            unit = unit_name(drivers[0].place(target).target)
            systemd.silent.add(unit)
            killed = asyncio.create_task(drivers[0].connect(target))
            async with asyncio.timeout(DEADLINE):
                while ("StartTransientUnit", unit) not in systemd.calls:
                    systemd.asked.clear()
                    await systemd.asked.wait()
            driver = PosixDriver(MountTable(), tmp_path / "run", (), runs[1])
            yield Site(systemd, driver, target, unit, tmp_path)
            killed.cancel()
            with suppress(asyncio.CancelledError):
                await killed


async def test_it_is_called_off_when_nobody_wants_it_any_more(site: Site) -> None:
    site.driver.table.refresh()
    assert await site.driver.observe(site.target) == Absent()
    await site.driver.disconnect(site.target, None)
    assert site.systemd.calls[-1] == ("StopUnit", site.unit)
    assert site.driver._marks.get(key_of(site.target)) is None


async def test_it_is_called_off_and_made_anew_when_it_is_wanted(site: Site) -> None:
    found = await site.driver.connect(site.target)
    assert found.ours
    await site.driver.disconnect(site.target, found)
    assert not mounts_below(site.ground)
