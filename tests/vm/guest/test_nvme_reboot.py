# SPDX-License-Identifier: LGPL-2.1-or-later
"""A reboot: what is persistent is connected as soon as the server is there, and not before."""

from typing import Final

import pytest

from tests.caller import calling
from tests.vm.guest.machine import Machine
from tests.vm.guest.nvmet import Target, controllers
from tests.vm.guest.steps import connected
from tests.vm.guest.units import SYSTEM_BUS, start

NQN: Final = "nqn.2026-01.org.example:reboot"
URI: Final = f"nvme+tcp://10.9.201.2/{NQN}"


@pytest.mark.before_reboot
async def test_before_a_reboot_a_subsystem_is_managed_that_is_not_there() -> None:
    start()
    async with calling(SYSTEM_BUS) as caller:
        await caller.manage(URI, "nvme")
        await caller.until("nvme", State="waiting")


@pytest.mark.after_reboot
async def test_after_a_reboot_it_is_connected_when_it_comes() -> None:
    async with calling(SYSTEM_BUS) as caller:
        await caller.until("nvme", State="waiting")
        with Machine(201) as machine, Target() as target:
            port = target.port(machine)
            subsystem = target.subsystem(NQN)
            port.serve(subsystem)
            assert len((await connected(caller, "nvme"))["Devices"]) == 1
            await caller.unmanage("nvme")
            await caller.gone(URI)
            assert not controllers()
