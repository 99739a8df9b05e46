# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests in the guest share: the service on the system bus, and what comes after a reboot.

Tests are run in two boots. In the first are all that are not marked, and at its end those marked
`before_reboot`; in the second are those marked `after_reboot`, and at its end those marked `last`,
which remove the package.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.caller import Caller, calling
from tests.shell import Shell
from tests.vm.guest.initiator import records, sessions
from tests.vm.guest.steps import leave
from tests.vm.guest.targets import Lio, Targets, Tgt
from tests.vm.guest.units import SYSTEM_BUS, start

FIRST: Final = os.environ.get("GUEST_BOOT", "1") == "1"

STATE: Final = Path(os.environ["GUEST_STATE"])
"""Of guest/run, which reboots where there is a file `next`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=100, help="of test_kills.py; by tens")


def pytest_configure(config: pytest.Config) -> None:
    for name in ("before_reboot", "after_reboot", "last"):
        config.addinivalue_line("markers", f"{name}: see tests/vm/guest/conftest.py")


# Last of all hooks, so that `-k` and the like have chosen before.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    after = [item for item in items if _is_marked(item, "after_reboot", "last")]
    now = [item for item in items if (item in after) is not FIRST]
    now.sort(key=lambda item: _is_marked(item, "before_reboot", "last"))
    config.hook.pytest_deselected(items=[item for item in items if item not in now])
    items[:] = now
    if after and FIRST:
        (STATE / "next").touch()


def _is_marked(item: pytest.Item, *names: str) -> bool:
    return any(item.get_closest_marker(name) for name in names)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Give a client of the service, which runs; nothing stays managed."""
    start()
    async with calling(SYSTEM_BUS) as caller:
        yield caller
        start()
        for cid in await caller.managed():
            await caller.unmanage(cid)
        await caller.manages()


@pytest.fixture
def shell() -> Shell:
    """Give busctl and gdbus on the system bus."""
    return Shell(SYSTEM_BUS)


@pytest.fixture(scope="module", params=[Tgt, Lio])
def machine(request: pytest.FixtureRequest) -> Iterator[Targets]:
    """Give a machine that serves iSCSI targets, once for each kind."""
    with request.param() as machine:
        machine.start()
        yield machine


@pytest.fixture
def iqn(machine: Targets) -> Iterator[str]:
    """Give a target with one disk."""
    iqn = machine.offer("disk")
    yield iqn
    machine.withdraw(iqn)


@pytest.fixture
async def client(machine: Targets, iqn: str, caller: Caller) -> AsyncIterator[Caller]:
    """Give a client that leaves no iSCSI behind, while `iqn` is still there."""
    assert iqn
    assert machine.serves
    yield caller
    await leave(caller)
    assert not sessions()
    assert not records()
