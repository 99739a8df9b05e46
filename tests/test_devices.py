# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real service, beside a real udevd, with storage on devices that come and go."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import udevd
from tests.caller import Service, calling
from tests.live import Daemon, private_bus
from tests.mounts import make_image, needs_root, tool

pytestmark = [needs_root, pytest.mark.root, pytest.mark.bus]

AHEAD = 2_000_000
"""Microseconds of waiting left at least, so that whatever connects sooner is no retry."""


@pytest.fixture
def running() -> Iterator[udevd.Udevd]:
    with udevd.running() as running:
        yield running


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


@pytest.fixture
async def service(tmp_path: Path, running: udevd.Udevd) -> AsyncIterator[Service]:
    roots = ("--mount-root", str(tmp_path))
    with private_bus() as address:
        where = (address, tmp_path / "state", tmp_path / "run")
        async with (
            calling(address) as caller,
            Daemon(*where, *roots, prefix=running.inside) as daemon,
        ):
            yield Service(tmp_path, address, daemon, caller)


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """Let the service hear of nothing until all of it has happened."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


async def next_attempt(service: Service) -> int:
    """Return when a connection that has no device will not try for a while; gives until when."""
    while True:
        found = await service.caller.until("disk", State="waiting", StateReason="not-found")
        if found["NextAttempt"] > found["StateSince"] + AHEAD:
            return int(found["NextAttempt"])
        await service.caller.until("disk", State="connecting")


async def test_what_waits_for_a_file_system_is_connected_when_its_device_appears(
    service: Service, running: udevd.Udevd, image: Path
) -> None:
    caller = service.caller
    await caller.manage(f"posix+ext4:/dev/disk/by-uuid/{udevd.uuid_of(image)}", "disk")
    retry = await next_attempt(service)
    with udevd.attached(image) as node:
        found = await caller.until("disk", State="connected")
        assert found["StateSince"] < retry, "it was the retry that connected it"
        assert found["Devices"] == [str(node)]
        with stopped(service.daemon):
            tool(*running.inside, "umount", found["MountPoint"])
            udevd.detach(image)
            running.settle()
        retry = await next_attempt(service)
    with udevd.attached(image):
        found = await caller.until("disk", State="connected", Reconnects=1)
        assert found["StateSince"] < retry, "it was the retry that connected it"
        await caller.unmanage("disk")
        await caller.hears_removed("disk")
