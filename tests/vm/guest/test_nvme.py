# SPDX-License-Identifier: LGPL-2.1-or-later
"""NVMe over TCP as its users meet it: the service on the system bus, the kernel's own target."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from tests.caller import Caller, given, refused
from tests.shell import Shell
from tests.vm.guest.machine import Machine
from tests.vm.guest.nvmet import (
    Port,
    Subsystem,
    Target,
    controllers,
    fabrics,
    read,
    registered,
    write,
)
from tests.vm.guest.steps import connected, leave
from tests.vm.guest.units import tool

NQN: Final = "nqn.2026-01.org.example:one"
OTHER: Final = "nqn.2026-01.org.example:host"
DISCOVERY: Final = "nqn.2014-08.org.nvmexpress.discovery"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(100) as machine:
        yield machine


@pytest.fixture
def target(machine: Machine) -> Iterator[Target]:
    assert machine.name
    with Target() as target:
        yield target


@pytest.fixture
def one(target: Target) -> Subsystem:
    return target.subsystem(NQN)


@pytest.fixture
def port(target: Target, machine: Machine, one: Subsystem) -> Port:
    port = target.port(machine)
    port.serve(one)
    return port


@pytest.fixture
async def client(port: Port, caller: Caller) -> AsyncIterator[Caller]:
    """Give a client that leaves nothing connected, while the target is still there."""
    assert port.address
    yield caller
    await leave(caller)
    assert not controllers()


def check_io(found: dict[str, Any]) -> None:
    """Write a block to the one device that a connection brings, and read it from the server."""
    (device,) = found["Devices"]
    text = os.urandom(4096)
    with open(device, "r+b", buffering=0) as disk:
        disk.write(text)
        os.fsync(disk.fileno())
    with open(device, "rb", buffering=0) as disk:
        assert disk.read(4096) == text


# connecting


async def test_busctl_is_all_it_takes(
    client: Caller, shell: Shell, port: Port, one: Subsystem
) -> None:
    path = await shell.manage(port.uri(one), "a")
    await shell.wait(path, "connected")
    check_io(await client.properties("a"))


async def test_a_subsystem_is_connected_and_published(
    client: Caller, port: Port, one: Subsystem
) -> None:
    uuid = (one.path / "namespaces/1/device_uuid").read_text().strip()
    await client.manage(port.uri(one), "a")
    found = await connected(client, "a")
    assert found["Devices"] == [f"/dev/disk/by-id/nvme-uuid.{uuid}"]
    info = found["ConnectionInfo"]
    expected = {
        "hostname": "10.9.100.2",
        "address": "10.9.100.2",
        "port": 4420,
        "transport": "tcp",
        "nqn": NQN,
        "kernelState": "live",
        "ctrlLossTimeout": "off",
        "reconnectDelay": "1",
        "owner": "storaged-conn",
        "hostNqn": read(Path("/etc/nvme/hostnqn")),
    }
    assert {name: info[name] for name in expected} == expected
    assert controllers() == {info["controller"]: NQN}
    check_io(found)
    await leave(client)
    assert not controllers()
    assert info["controller"] not in registered()


async def test_every_option_reaches_the_kernel(client: Caller, port: Port, one: Subsystem) -> None:
    options: dict[str, object] = {
        "host-nqn": OTHER,
        "host-id": "6f2b8a43-2b5b-4f55-9f0e-3a6bd4e6f0c1",
        "host-traddr": "10.9.100.1",
        "host-iface": port.machine.interface,
        "nr-io-queues": 1,
        "keep-alive": 7,
        "ctrl-loss-timeout": 30,
        "reconnect-delay": 3,
        "hdr-digest": True,
        "data-digest": True,
    }
    await client.manage(port.uri(one), "a", **options)
    info = (await connected(client, "a"))["ConnectionInfo"]
    expected = {"hostNqn": OTHER, "keepAlive": 7, "ctrlLossTimeout": "30", "queues": 2}
    assert {name: info[name] for name in expected} == expected
    assert info["reconnectDelay"] == "3"
    address = read(Path("/sys/class/nvme", info["controller"], "address"))
    assert f"host_traddr=10.9.100.1,host_iface={port.machine.interface}" in address


async def test_two_ids_share_one_controller_and_other_options_are_refused(
    client: Caller, port: Port, one: Subsystem
) -> None:
    await client.manage(port.uri(one), "a")
    await client.manage(
        port.uri(one).replace("nvme+tcp://10.9.100.2", "NVME+TCP://10.9.100.2:4420"), "b"
    )
    await connected(client, "a")
    await connected(client, "b")
    assert len(controllers()) == 1
    with refused("InvalidArgument") as refusal:
        await client.manage(port.uri(one), "c", **{"keep-alive": 9})
    assert "managed already" in refusal.text
    await client.unmanage("a")
    check_io(await connected(client, "b"))


async def test_ipv6_and_another_port(client: Caller, target: Target, machine: Machine) -> None:
    subsystem = target.subsystem(f"{NQN}-six")
    port = target.port(machine, 4444, machine.address_6)
    port.serve(subsystem)
    await client.manage(port.uri(subsystem), "a")
    check_io(await connected(client, "a"))
    await leave(client)


async def test_several_subsystems_with_several_namespaces(
    client: Caller, target: Target, port: Port
) -> None:
    several = [target.subsystem(f"{NQN}-{number}", namespaces=number) for number in (1, 2, 3)]
    port.serve(*several)
    for number, subsystem in enumerate(several, 1):
        await client.manage(port.uri(subsystem), str(number))
    for number in (1, 2, 3):
        found = await connected(client, str(number))
        uuids = [read(one / "device_uuid") for one in several[number - 1].namespaces()]
        devices = [f"/dev/disk/by-id/nvme-uuid.{uuid}" for uuid in uuids]
        await client.until(str(number), State="connected", Devices=devices)
        assert found["ConnectionInfo"]["nqn"] == f"{NQN}-{number}"
    await leave(client)


async def test_namespaces_that_come_and_go_are_published(
    client: Caller, port: Port, one: Subsystem
) -> None:
    one.remove(1)
    await client.manage(port.uri(one), "a")
    await client.until("a", State="connecting", StateReason="waiting-for-devices", Devices=[])
    first = f"/dev/disk/by-id/nvme-uuid.{one.add(1)}"
    await client.until("a", State="connected", Devices=[first])
    second = f"/dev/disk/by-id/nvme-uuid.{one.add(2)}"
    await client.until("a", Devices=[first, second])
    one.remove(1)
    await client.until("a", State="connected", Devices=[second])


async def test_one_subsystem_over_two_addresses_is_two_connections_and_one_device(
    client: Caller, target: Target, machine: Machine, port: Port, one: Subsystem
) -> None:
    other = target.port(machine, address=machine.second)
    other.serve(one)
    await client.manage(port.uri(one), "a")
    await client.manage(other.uri(one), "b")
    first, second = await connected(client, "a"), await connected(client, "b")
    assert first["Devices"] == second["Devices"]
    names = {one["ConnectionInfo"]["controller"] for one in (first, second)}
    assert len(names) == 2
    port.withdraw(one)
    await client.until("a", State="unresponsive")
    check_io(await connected(client, "b"))
    await client.unmanage("a")
    await client.gone(port.uri(one))
    check_io(await connected(client, "b"))
    await leave(client)


# asking


async def test_what_the_server_does_not_give_us_fails_and_is_told_apart(
    client: Caller, port: Port, one: Subsystem
) -> None:
    await client.manage(f"{port.uri(one)}-nonesuch", "nqn")
    found = await client.until("nqn", State="failed")
    assert found["LastErrorName"].endswith(".NotOffered"), found["LastErrorMessage"]
    one.allow_all(yes=False)
    await client.manage(port.uri(one), "host")
    found = await client.until("host", State="failed")
    assert found["LastErrorName"].endswith(".AccessDenied"), found["LastErrorMessage"]
    assert not controllers()
    one.allow_all(yes=True)
    await client.reconnect("host")
    await connected(client, "host")


async def test_it_is_said_which_step_would_fail(client: Caller, port: Port, one: Subsystem) -> None:

    async def reason(uri: str, **options: object) -> object:
        (found,) = await client.call("Validate", "sa{sv}", uri, given(options))
        assert found["ok"] is ("reason" not in found)
        return found.get("reason")

    uri = port.uri(one)
    assert await reason(uri) is None
    assert await reason(f"{uri}-nonesuch") == "not-offered"
    assert await reason(uri.replace(".2/", ".2:4421/")) == "server-refused"
    assert await reason(uri.replace("10.9.100.2", "192.0.2.1")) == "network-unreachable"
    assert await reason(uri.replace("10.9.100.2", "nonesuch.invalid")) == "name-resolution"
    one.allow_all(yes=False)
    one.allow(OTHER)
    assert await reason(uri) == "access-denied"
    assert await reason(uri, **{"host-nqn": OTHER}) is None
    assert not controllers()


async def test_subsystems_are_discovered_and_referrals_are_not_followed(
    client: Caller, port: Port, one: Subsystem
) -> None:
    port.refer("elsewhere", "10.9.100.77", 8009)
    (found,) = await client.call("Discover", "sa{sv}", "nvme+tcp://10.9.100.2", {})
    kinds = {entry["uri"]: entry["kind"] for entry in found}
    assert kinds == {
        port.uri(one): "subsystem",
        "nvme+tcp://10.9.100.77:8009": "referral",
    }
    said = tool("nvme", "discover", "-t", "tcp", "-a", "10.9.100.2", "-s", "4420")
    assert NQN in said
    assert not controllers()


# what others do


async def test_what_somebody_else_connected_is_listed_adopted_and_left_alone(
    client: Caller, port: Port, one: Subsystem
) -> None:
    tool("nvme", "connect", "-t", "tcp", "-a", "10.9.100.2", "-s", "4420", "-n", NQN)
    try:
        cid = await client.unmanaged(port.uri(one), State="connected")
        (name,) = controllers()
        assert cid == f"unmanaged/{name}"
        await client.manage(port.uri(one), "a")
        found = await connected(client, "a")
        assert found["ConnectionInfo"]["controller"] == name
        assert found["ConnectionInfo"]["owner"] == ""
        check_io(found)
        await client.unmanage("a")
        await client.unmanaged(port.uri(one), State="connected")
        assert list(controllers()) == [name]
    finally:
        tool("nvme", "disconnect", "-n", NQN)
    await client.gone(port.uri(one))


async def test_what_root_disconnects_is_connected_again(
    client: Caller, port: Port, one: Subsystem
) -> None:
    await client.manage(port.uri(one), "a")
    await connected(client, "a")
    for number in range(1, 4):
        tool("nvme", "disconnect", "-n", NQN)
        await client.until("a", State="connected", Reconnects=number)
        check_io(await client.properties("a"))


async def test_what_is_mounted_is_kept_until_it_is_free_or_force_is_given(
    client: Caller, port: Port, one: Subsystem, tmp_path: Path
) -> None:
    await client.manage(port.uri(one), "a")
    (device,) = (await connected(client, "a"))["Devices"]
    tool("mke2fs", "-q", "-t", "ext4", device)
    tool("mount", device, tmp_path)
    try:
        await client.unmanage("a")
        await client.unmanaged(port.uri(one), State="disconnecting", StateReason="busy")
        write(tmp_path / "file", "still here")
    finally:
        tool("umount", tmp_path)
    await client.gone(port.uri(one))
    assert not controllers()
    await client.manage(port.uri(one), "b", force=True)
    (device,) = (await connected(client, "b"))["Devices"]
    tool("mount", device, tmp_path)
    try:
        assert read(tmp_path / "file") == "still here"
        await client.unmanage("b")
        await client.gone(port.uri(one))
        assert not controllers()
    finally:
        tool("umount", tmp_path)


async def test_what_is_swapped_to_is_kept_until_it_is_free(
    client: Caller, port: Port, one: Subsystem
) -> None:
    await client.manage(port.uri(one), "a")
    (device,) = (await connected(client, "a"))["Devices"]
    tool("mkswap", device)
    tool("swapon", device)
    try:
        await client.unmanage("a")
        await client.unmanaged(port.uri(one), State="disconnecting", StateReason="busy")
    finally:
        tool("swapoff", device)
    await client.gone(port.uri(one))
    assert not controllers()


async def test_what_the_administrator_excludes_is_not_connected(
    client: Caller, port: Port, one: Subsystem
) -> None:
    file = Path("/etc/nvme/exclusions.conf")
    write(file, f"[exclusions]\nexclusion = transport=tcp;nqn={NQN}\n")
    try:
        await client.manage(port.uri(one), "a")
        found = await client.until("a", State="failed", StateReason="refused")
        assert "exclusions.conf" in found["LastErrorMessage"]
        assert not controllers()
    finally:
        tool("rm", file)
    await client.reconnect("a")
    await connected(client, "a")


async def test_a_controller_of_another_owner_is_never_disconnected(
    client: Caller, port: Port, one: Subsystem
) -> None:
    await client.manage(port.uri(one), "a")
    name = (await connected(client, "a"))["ConnectionInfo"]["controller"]
    owner = Path("/run/nvme/registry", name, "owner")
    assert read(owner) == "storaged-conn"
    assert tool("stat", "--format=%a", owner) == "644\n"
    write(owner, "stas")
    await client.unmanage("a")
    await client.unmanaged(port.uri(one), State="connected")
    assert list(controllers()) == [name]
    tool("nvme", "disconnect", "-n", NQN)
    await client.gone(port.uri(one))
    assert read(owner) == "stas"  # as it stays where nothing removes it
    await client.manage(port.uri(one), "b")
    info = (await connected(client, "b"))["ConnectionInfo"]
    assert (info["controller"], info["owner"]) == (name, "storaged-conn")


async def test_the_discovery_service_is_listed_and_not_managed(client: Caller, port: Port) -> None:
    line = f"transport=tcp,traddr=10.9.100.2,trsvcid=4420,nqn={DISCOVERY},hostnqn={OTHER}"
    name = fabrics(f"{line},hostid={uuid4()},keep_alive_tmo=30")
    try:
        await client.unmanaged(f"nvme+tcp://10.9.100.2/{DISCOVERY}")
        with refused("InvalidArgument") as refusal:
            await client.manage(f"nvme+tcp://10.9.100.2/{DISCOVERY}", "a")
        assert "Discover" in refusal.text
    finally:
        write(Path("/sys/class/nvme", name, "delete_controller"), "1")
    await client.gone(f"nvme+tcp://10.9.100.2/{DISCOVERY}")
    assert port.address
