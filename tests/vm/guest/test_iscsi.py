# SPDX-License-Identifier: LGPL-2.1-or-later
"""iSCSI as its users meet it: connecting, sharing, asking, and what others do."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.caller import Caller, refused
from tests.shell import Shell
from tests.vm.guest.initiator import (
    PLACES,
    foreign,
    iscsiadm,
    logged_in,
    records,
    session,
    sessions,
)
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.targets import Targets
from tests.vm.guest.units import UNIT, owners, restarted, show, tool


@contextmanager
def mounted(disk: str, place: Path) -> Iterator[Path]:
    """Make a file system on a disk and use it."""
    tool("mkfs.ext4", "-q", "-F", disk)
    place.mkdir()
    tool("mount", disk, place)
    try:
        yield place
    finally:
        tool("umount", "--lazy", place)
        place.rmdir()


# connecting


async def test_busctl_is_all_it_takes(
    client: Caller, machine: Targets, iqn: str, shell: Shell
) -> None:
    path = await shell.manage(machine.uri(iqn), "a")
    await shell.wait(path, "connected")
    found = await client.properties("a")
    link = f"/dev/disk/by-path/ip-{machine.portals[0]}-iscsi-{iqn}-lun-{machine.lun}"
    assert link in found["Devices"]
    assert not [one for one in found["Devices"] if not tool("lsblk", "--noheadings", one)]
    tool("dd", f"of={link}", "conv=fsync", "status=none", text="from the initiator")
    assert machine.disks(iqn)[0].read_bytes().startswith(b"from the initiator")


async def test_what_is_connected_is_published(client: Caller, machine: Targets, iqn: str) -> None:
    await client.manage(machine.uri(iqn), "a")
    found = await connected(client, "a")
    expected = {
        "hostname": machine.address,
        "address": machine.address,
        "port": 3260,
        "portal": 1,
        "iqn": iqn,
        "interface": "default",
        "session": sessions()[0].number,
    }
    assert found["ConnectionInfo"] == expected
    assert found["Uri"] == machine.uri(iqn)


async def test_every_disk_is_waited_for(client: Caller, machine: Targets) -> None:
    iqn = machine.offer("two", disks=2)
    luns = (str(machine.lun), str(machine.lun + 1))
    await client.manage(machine.uri(iqn), "a", luns=luns)
    found = await connected(client, "a")
    places = f"/dev/disk/by-path/ip-{machine.portals[0]}-iscsi-{iqn}-lun-"
    assert {f"{places}{lun}" for lun in luns} <= set(found["Devices"])
    await client.unmanage("a")
    await client.gone(machine.uri(iqn))
    await client.manage(machine.uri(iqn), "b", luns=("9",))
    await client.until("b", State="connecting", StateReason="waiting-for-devices")
    await leave(client)
    machine.withdraw(iqn)


async def test_two_ids_share_one_session(client: Caller, machine: Targets, iqn: str) -> None:
    uri, lun = machine.uri(iqn), f"{machine.uri(iqn)};lun={machine.lun}"
    for cid, one in (("a", uri), ("b", uri), ("c", lun)):
        await client.manage(one, cid)
    numbers = {session(await connected(client, cid)) for cid in "abc"}
    assert numbers == set(logged_in())
    assert len(sessions()) == 1
    with refused("InvalidArgument"):
        await client.manage(uri, "d", header_digest="crc32c")
    await client.unmanage("a")
    await client.unmanage("b")
    await client.gone(uri)
    await connected(client, "c")
    assert set(logged_in()) == numbers
    await client.unmanage("c")
    await client.gone(lun)
    assert not sessions()
    assert not records()


async def test_two_portals_are_two_connections(client: Caller, machine: Targets, iqn: str) -> None:
    first, second = (f"iscsi://{one}/{iqn}" for one in (machine.address, machine.second))
    await client.manage(first, "a")
    await client.manage(second, "b")
    found = [await connected(client, cid) for cid in "ab"]
    assert session(found[0]) != session(found[1])
    assert [one["SharedWith"] for one in found] == [[], []]
    await client.unmanage("a")
    await client.gone(first)
    assert set(logged_in()) == {session(found[1])}


async def test_a_target_that_comes_later_is_connected_then(
    client: Caller, machine: Targets, iqn: str
) -> None:
    machine.stop()
    await client.manage(machine.uri(iqn), "a")
    await client.until("a", State="waiting", StateReason="server-refused")
    machine.start()
    await connected(client, "a")
    assert (await client.properties("a"))["Reconnects"] == 0


async def test_a_name_that_the_server_does_not_know_yet(client: Caller, machine: Targets) -> None:
    uri = machine.uri(f"iqn.2026-01.org.example.{machine.name}:later")
    await client.manage(uri, "a")
    await client.until("a", State="waiting", StateReason="not-found")
    assert not records()
    iqn = machine.offer("later")
    await client.reconnect("a")
    await connected(client, "a")
    await leave(client)
    machine.withdraw(iqn)


# asking


def configuration() -> dict[str, bytes]:
    files = [file for place in PLACES for file in place.rglob("*") if file.is_file()]
    return {str(file): file.read_bytes() for file in files}


async def test_targets_are_discovered_and_nothing_stays(
    client: Caller, machine: Targets, iqn: str
) -> None:
    before = configuration()
    (found,) = await client.call("Discover", "sa{sv}", f"iscsi://{machine.address}", {})
    uris = [f"iscsi://{address}/{iqn}" for address in (machine.address, machine.second)]
    assert [one["uri"] for one in found] == uris[: machine.told]
    assert configuration() == before
    await client.manage(found[-1]["uri"], "a")
    await connected(client, "a")


@pytest.mark.parametrize(
    ("host", "name", "reason"),
    [
        ("{address}", "disk", None),
        ("nonesuch.invalid", "disk", "name-resolution"),
        ("192.0.2.1", "disk", "network-unreachable"),
        ("{address}:3261", "disk", "server-refused"),
        ("{address}", "nonesuch", "not-found"),
    ],
)
async def test_it_is_said_which_step_would_fail(
    client: Caller, machine: Targets, iqn: str, host: str, name: str, reason: str | None
) -> None:
    uri = f"iscsi://{host.format(address=machine.address)}/{iqn.replace(':disk', f':{name}')}"
    (found,) = await client.call("Validate", "sa{sv}", uri, {})
    assert found.get("reason") == reason, found
    assert found["ok"] is (reason is None)
    assert not sessions()


# what others do


async def test_what_somebody_else_logged_in_is_listed_adopted_and_left_alone(
    client: Caller, machine: Targets, iqn: str
) -> None:
    uri = machine.uri(iqn)
    with foreign(iqn, machine.portals[0]) as number:
        cid = await client.unmanaged(uri, State="connected")
        assert cid == f"unmanaged/iscsi-session-{number}"
        before = records()
        await client.manage(uri, "a")
        found = await connected(client, "a")
        assert session(found) == number
        assert found["Attempts"] <= 1
        await client.unmanage("a")
        assert await client.unmanaged(uri, State="connected") == cid
        assert set(logged_in()) == {number}
        assert records() == before
    await client.gone(uri)


async def test_what_root_logs_out_is_logged_in_again_at_once(
    client: Caller, machine: Targets, iqn: str
) -> None:
    await client.manage(machine.uri(iqn), "a")
    number = session(await connected(client, "a"))
    for reconnects in (1, 2):
        iscsiadm("--mode=session", f"--sid={number}", "--logout")
        found = await client.until("a", State="connected", Reconnects=reconnects)
        assert session(found) > number
        number = session(found)
    assert len(sessions()) == 1


async def test_what_is_in_use_stays_until_it_is_free(
    client: Caller, machine: Targets, iqn: str, tmp_path: Path
) -> None:
    uri = machine.uri(iqn)
    await client.manage(uri, "a")
    found = await connected(client, "a")
    with mounted(found["Devices"][0], tmp_path / "disk") as place:
        await client.unmanage("a")
        cid = await client.unmanaged(uri, StateReason="busy")
        assert cid == f"unmanaged/iscsi-session-{session(found)}"
        (place / "file").write_text("works")
        assert set(logged_in()) == {session(found)}
    await client.gone(uri)
    assert not sessions()


async def test_swap_is_a_use_too(client: Caller, machine: Targets, iqn: str) -> None:
    await client.manage(machine.uri(iqn), "a")
    disk = (await connected(client, "a"))["Devices"][0]
    tool("mkswap", disk)
    tool("swapon", disk)
    try:
        await client.unmanage("a")
        await client.unmanaged(machine.uri(iqn), StateReason="busy")
    finally:
        tool("swapoff", disk)
    await client.gone(machine.uri(iqn))


async def test_what_is_in_use_goes_where_that_is_forced(
    client: Caller, machine: Targets, iqn: str, tmp_path: Path
) -> None:
    await client.manage(machine.uri(iqn), "a", force=True)
    found = await connected(client, "a")
    with mounted(found["Devices"][0], tmp_path / "disk"):
        await client.unmanage("a")
        await client.gone(machine.uri(iqn))
        assert not sessions()


# what happens to us


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_session_and_its_users_outlive_the_service(
    client: Caller, machine: Targets, iqn: str, number: signal.Signals
) -> None:
    await client.manage(machine.uri(iqn), "a")
    await client.manage(machine.uri(iqn), "b")
    found = await connected(client, "a")
    stop = asyncio.Event()
    writing = asyncio.create_task(asyncio.to_thread(write_until, found["Devices"][0], stop))
    try:
        async with owners() as changes:
            if number == signal.SIGKILL:
                tool("kill", "-KILL", show("MainPID"))
            else:
                await asyncio.to_thread(tool, "systemctl", "restart", UNIT)
            await restarted(changes)
        for cid in ("a", "b"):
            assert session(await connected(client, cid)) == session(found)
    finally:
        stop.set()
    assert await writing > 0
    assert set(logged_in()) == {session(found)}
    assert len(sessions()) == 1


def write_until(disk: str, stop: asyncio.Event) -> int:
    """Write, and have it on the target's disk, until told to stop; gives how often."""
    written = 0
    with Path(disk).open("r+b", buffering=0) as file:
        while not stop.is_set():
            file.seek(0)
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            written += 1
    return written
