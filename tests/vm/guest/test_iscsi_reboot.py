# SPDX-License-Identifier: LGPL-2.1-or-later
"""A reboot while an iSCSI disk is in use, whose target dies first: it comes back by itself.

The shutdown waits as long as the kernel does for a dead target, so that is made short: see
test_reboot.py for how long it took.
"""

from typing import Final

import pytest

from tests.caller import calling
from tests.vm.guest.initiator import records, sessions
from tests.vm.guest.steps import connected
from tests.vm.guest.targets import Account, Tgt
from tests.vm.guest.units import SYSTEM_BUS, start, tool

MACHINE: Final = Tgt(201)
CHAP: Final = Account("initiator", "initiators-own")

NAME: Final = "reboot"
CID: Final = "iscsi"

WAITS: Final = 5
"""Seconds for the dead target, in place of 120."""


@pytest.mark.before_reboot
async def test_before_a_reboot_a_disk_is_in_use() -> None:
    """The machine is left as it is: only the reboot ends it."""
    MACHINE.__enter__()
    MACHINE.start()
    uri = MACHINE.uri(MACHINE.offer(NAME, CHAP))
    start()
    options: dict[str, object] = {"username": CHAP.username, "password": CHAP.password.encode()}
    async with calling(SYSTEM_BUS) as caller:
        await caller.manage(uri, CID, replacement_timeout=WAITS, **options)
        disk = (await connected(caller, CID))["Devices"][0]
    tool("mkfs.ext4", "-q", "-F", disk)
    tool("mount", "--mkdir", disk, "/mnt/iscsi")
    tool("dd", "if=/dev/zero", "of=/mnt/iscsi/dirty", "bs=64k", "count=16", "status=none")


@pytest.mark.after_reboot
async def test_after_a_reboot_it_waits_for_its_target_and_is_connected_then() -> None:
    async with calling(SYSTEM_BUS) as caller:
        await caller.until(CID, State="waiting")
        with MACHINE:
            uri = MACHINE.uri(MACHINE.offer(NAME, CHAP))
            MACHINE.start()
            await connected(caller, CID)
            assert len(sessions()) == 1
            await caller.unmanage(CID)
            await caller.gone(uri)
            assert not sessions()
            assert not records()
