# SPDX-License-Identifier: LGPL-2.1-or-later
"""Both mounters: the child with mount(8), and systemd, which a fake is here."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from storaged_conn.bus.systemd import SystemdMounter
from storaged_conn.system import mounting
from storaged_conn.system.mountinfo import MountTable
from storaged_conn.system.mounting import Mounter
from tests.bus.wires import connected
from tests.live import private_bus
from tests.mounters import MounterContract
from tests.mounts import cleaned, needs_root
from tests.systemd import fake_systemd


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with private_bus() as address:
        yield address


@needs_root
@pytest.mark.root
@pytest.mark.bus
class TestMounters(MounterContract):
    @pytest.fixture
    def ground(self, tmp_path: Path) -> Iterator[Path]:
        (tmp_path / "root").mkdir()
        with cleaned(tmp_path):
            yield tmp_path

    @pytest.fixture(params=["child", "systemd"])
    async def mounter(
        self, request: pytest.FixtureRequest, ground: Path, address: str
    ) -> AsyncIterator[Mounter]:
        if request.param == "child":
            yield mounting
            return
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fake_systemd(address))
            bus = await stack.enter_async_context(connected(address))
            yield SystemdMounter(bus, ground / "words", MountTable())
