# SPDX-License-Identifier: LGPL-2.1-or-later
"""What targets.py plays is what initiators meet: with iscsiadm alone, without the service."""

import time
from contextlib import ExitStack

import pytest

from tests.vm.guest.initiator import (
    Trace,
    foreign,
    iscsiadm,
    logged_in,
    node,
    sessions,
    until_logged_in,
)
from tests.vm.guest.targets import Account, Targets
from tests.vm.guest.units import tool

CHAP = Account("initiator", "initiators-own")
OTHER = Account("target", "the-targets-own")


def test_targets_are_told_and_disks_hold_what_is_written(machine: Targets) -> None:
    iqn = machine.offer("disk")
    said = iscsiadm("--mode=discoverydb", "--type=sendtargets", f"--portal={machine.address}",
                    "--discover", "--op=nonpersistent")  # fmt: skip
    assert {line.split()[1] for line in said.splitlines()} == {iqn}
    assert len(said.splitlines()) == machine.told
    with foreign(iqn, machine.portals[0]) as number:
        assert logged_in() == {number: iqn}
        tool("udevadm", "settle")
        disk = f"/dev/disk/by-path/ip-{machine.portals[0]}-iscsi-{iqn}-lun-{machine.lun}"
        tool("dd", "if=/dev/urandom", f"of={disk}", "bs=1M", "count=1", "conv=fsync")
    assert any(machine.disks(iqn)[0].read_bytes())
    machine.withdraw(iqn)


def test_a_secret_is_asked_for(machine: Targets) -> None:
    iqn = machine.offer("secret", CHAP, OTHER)
    portal = machine.portals[0]
    with pytest.raises(AssertionError, match="authorization"), foreign(iqn, portal):
        pass
    with ExitStack() as undo:
        iscsiadm(*node(iqn, portal), "--op=new")
        undo.callback(iscsiadm, *node(iqn, portal), "--op=delete")
        told = dict(zip(("username", "password"), CHAP, strict=True))
        told |= dict(zip(("username_in", "password_in"), OTHER, strict=True))
        for name, value in {"authmethod": "CHAP", **told}.items():
            setting = (f"--name=node.session.auth.{name}", f"--value={value}")
            iscsiadm(*node(iqn, portal), "--op=update", *setting)
        iscsiadm(*node(iqn, portal), "--login")
        iscsiadm(*node(iqn, portal), "--logout")
    machine.withdraw(iqn)


def test_a_stop_breaks_sessions_and_a_start_lets_them_come_back(machine: Targets) -> None:
    iqn = machine.offer("stops", disks=2)
    with Trace() as trace, foreign(iqn, machine.portals[1]) as number:
        begun = time.time()
        machine.stop()
        failed = trace.failed(number, begun)
        assert failed - begun < 1.5
        machine.start()
        until_logged_in(1)
        assert trace.back(number, failed) < time.time()
    machine.withdraw(iqn)
    assert not sessions()
