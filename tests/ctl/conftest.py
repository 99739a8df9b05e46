# SPDX-License-Identifier: LGPL-2.1-or-later
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from storaged_conn.ctl.client import Client, open_client
from tests.ctl.program import Control
from tests.live import Daemon, private_bus


@pytest.fixture(scope="module")
def bus() -> Iterator[str]:
    with private_bus() as address:
        yield address


@pytest.fixture
def ctl(bus: str) -> Control:
    return Control(bus)


@pytest.fixture
async def service(bus: str, tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(bus, tmp_path / "state", tmp_path / "run", "--enable-simulated") as daemon:
        yield daemon


@pytest.fixture
async def client(bus: str) -> AsyncIterator[Client]:
    async with open_client(bus) as client:
        yield client
