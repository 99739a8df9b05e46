# SPDX-License-Identifier: LGPL-2.1-or-later
"""The NFS driver in a world of fakes, knocking at a real port; tests/vm has the real thing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from storaged_conn.core.model import Absent, Present, Target, Topic, Value
from storaged_conn.drivers.mount import key_of
from storaged_conn.drivers.nfs_server import COMPOUND, EXPORT
from storaged_conn.errors import (
    AccessDeniedError,
    AttemptError,
    BusyError,
    NotOfferedError,
    ProtocolError,
    StaleError,
    TimedOutError,
    TroubleError,
    UnreachableError,
    UnusableError,
)
from storaged_conn.system.probe import Verdict
from storaged_conn.system.rpc import GETPORT, RPCBIND_PORT, Procedure, numbers
from storaged_conn.system.sentinel import Address
from tests.drivers.nfs_world import SUPER, World, line
from tests.mounts import needs_root
from tests.rpc import export_list, mismatch, rpc_server, success

NFS: Final = 100003
HOST: Final = Address("host", 2049)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Knocked:
    """A server's port; `versions` is what it speaks."""

    def __init__(self) -> None:
        self.asked: list[Procedure] = []
        self.versions = range(3, 5)
        self.server = Address("", 0)

    def answer(self, what: Procedure, _: bytes) -> bytes:
        self.asked.append(what)
        if what.version in self.versions:
            return success()
        return mismatch(self.versions[0], self.versions[-1])

    def target(self, world: World, **options: Value) -> Target:
        given = {name.replace("_", "-"): value for name, value in options.items()}
        return world.driver.parse(f"nfs://host:{self.server.port}/export", given)


@pytest.fixture
async def port() -> AsyncIterator[Knocked]:
    port = Knocked()
    async with rpc_server(port.answer) as port.server:
        yield port


def here(world: World, **options: Value) -> Target:
    """Give the target of nfs://host/export; nobody knocks at it."""
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return world.driver.parse("nfs://host/export", given)


def mount_ours(world: World, target: Target, source: str = "host:/export") -> None:
    """Be as after a mount of ours."""
    place = world.driver.place(target)
    world.add(line(50, place.target, source, flags="rw,nosuid,nodev"))
    world.driver._marks.plan(key_of(target))
    world.table.refresh()


# reading


def test_it_serves_nfs(world: World) -> None:
    assert world.driver.serves("nfs")
    assert not world.driver.serves("nfs4")
    assert world.driver.schemes() == ("nfs",)


def test_spellings_and_defaults_are_one_target(world: World) -> None:
    parse = world.driver.parse
    assert parse("nfs://HOST:/export/", {"hard": True, "version": "auto"}) == here(world)
    assert parse("nfs://host:export", {"port": 2049}) == here(world)
    assert here(world, soft=True) != here(world)
    assert here(world, version="3").options == (("version", "3"),)


def test_its_topics_are_its_place_its_server_and_its_source(world: World) -> None:
    target = world.driver.parse("nfs://[fd09::2]:2050/x", {"mountpoint": world.point})
    assert world.driver.topics(target) == {
        Topic("mount", world.point),
        Topic("server", "[fd09::2]:2050"),
        Topic("source", "[fd09::2]:/x"),
    }


# connecting


async def test_it_knocks_mounts_and_asks_the_mount(world: World, port: Knocked) -> None:
    target = port.target(world, version="4.2", mountpoint=world.point)
    found = await world.driver.connect(target)
    assert port.asked == [(NFS, 4, 0)]
    ((what, source, fstype, *flags),) = world.mounter.done
    assert (what, source, fstype) == ("mount", "host:/export", "nfs")
    expected = ["retry=0", "proto=tcp", f"port={port.server.port}", "hard", "vers=4.2"]
    assert flags == expected
    assert (found.ours, found.responsive, found.mountpoint) == (True, True, world.point)
    assert [mount.target for mount in world.health.asked] == [world.point]


async def test_its_info_is_what_the_kernel_made_of_it(world: World, port: Knocked) -> None:
    found = await world.driver.connect(port.target(world, mountpoint=world.point))
    kept = {name: found.info[name] for name in ("hostname", "remotePath", "version", "readOnly")}
    assert kept == {
        "hostname": "host",
        "remotePath": "/export",
        "version": "4.2",
        "readOnly": False,
    }


async def test_a_server_that_is_down_is_not_waited_for(world: World) -> None:
    world.servers.go_down(HOST)
    with pytest.raises(UnreachableError):
        await world.driver.connect(here(world))
    assert not world.mounter.done


@pytest.mark.parametrize(
    ("versions", "version", "knocks"),
    [
        (range(3, 4), "auto", [4, 3]),
        (range(3, 4), "3", [3]),
        (range(4, 5), "auto", [4]),
        (range(4, 5), "4.1", [4]),
    ],
)
async def test_any_version_that_both_sides_know_will_do(
    world: World, port: Knocked, versions: range, version: str, knocks: list[int]
) -> None:
    port.versions = versions
    await world.driver.connect(port.target(world, version=version))
    assert [what.version for what in port.asked] == knocks


@pytest.mark.parametrize(("versions", "version"), [(range(3, 4), "4.2"), (range(4, 5), "3")])
async def test_a_server_without_the_version_is_told_so(
    world: World, port: Knocked, versions: range, version: str
) -> None:
    port.versions = versions
    with pytest.raises(ProtocolError, match="versions"):
        await world.driver.connect(port.target(world, version=version))
    assert not world.mounter.done


async def test_a_refusal_is_believed_unless_the_server_has_only_just_come_up(
    world: World, port: Knocked
) -> None:
    target, server = port.target(world), Address("host", port.server.port)
    world.mounter.failures.extend(ProtocolError("not supported") for _ in range(2))
    with pytest.raises(ProtocolError):
        await world.driver.connect(target)
    world.servers.go_down(server)
    world.servers.come_back(server)
    with pytest.raises(TroubleError, match="only just come up"):
        await world.driver.connect(target)


async def test_a_mount_that_does_not_answer_is_there_and_not_responsive(
    world: World, port: Knocked
) -> None:
    world.health.verdicts.extend([Verdict.SILENT, None])
    found = await world.driver.connect(port.target(world))
    assert (found.ours, found.responsive) == (True, False)
    assert (await world.driver.connect(port.target(world))).responsive is False


# looking


@pytest.mark.parametrize(
    ("verdict", "responsive"), [(Verdict.ANSWERS, True), (Verdict.SILENT, False)]
)
async def test_what_is_mounted_is_asked(world: World, verdict: Verdict, responsive: bool) -> None:  # noqa: FBT001
    target = here(world)
    mount_ours(world, target)
    world.health.verdicts.append(verdict)
    found = await world.driver.observe(target)
    assert isinstance(found, Present)
    assert (found.name, found.ours, found.responsive) == ("mount-50", True, responsive)


async def test_what_cannot_be_known_is_unknown(world: World) -> None:
    target = here(world)
    mount_ours(world, target)
    world.health.verdicts.append(None)
    assert await world.driver.observe(target) is None


async def test_what_is_not_mounted_is_absent_and_nobody_is_asked(world: World) -> None:
    assert await world.driver.observe(here(world)) == Absent()
    assert not world.health.asked


async def test_what_somebody_unmounted_is_absent(world: World) -> None:
    target = here(world)
    mount_ours(world, target)
    world.drop(world.driver.place(target).target)
    world.table.refresh()
    assert await world.driver.observe(target) == Absent()


async def test_what_somebody_else_mounted_is_adopted(world: World) -> None:
    world.add(line(7, "/data", "host:/export/"))
    world.add(line(8, "/data2", "host:/export"))
    world.table.refresh()
    found = await world.driver.observe(here(world))
    assert isinstance(found, Present)
    assert (found.name, found.ours) == ("mount-8", False)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("ro", {}),
        ("rw", {"read-only": True}),
        ("rw", {"version": "3"}),
        ("rw", {"soft": True}),
        ("rw", {"mount-options": ("noatime",)}),
    ],
)
async def test_what_was_mounted_otherwise_is_not_adopted(
    world: World, flags: str, options: dict[str, Value]
) -> None:
    world.add(line(7, "/data", "host:/export", flags=flags))
    world.table.refresh()
    target = world.driver.parse("nfs://host/export", options)
    assert await world.driver.observe(target) == Absent()


async def test_another_port_is_another_server(world: World) -> None:
    world.add(line(7, "/data", "host:/export", shown=f"{SUPER},port=2050"))
    world.table.refresh()
    assert await world.driver.observe(here(world)) == Absent()
    other = world.driver.parse("nfs://host:2050/export", {})
    assert isinstance(await world.driver.observe(other), Present)


async def test_what_we_were_mounting_is_ours_by_whatever_name_the_kernel_knows_the_server(
    world: World,
) -> None:
    target = here(world, mountpoint=world.point)
    mount_ours(world, target, "10.9.0.2:/export")
    found = await world.driver.observe(target)
    assert isinstance(found, Present)
    assert found.ours


# what is stale


async def test_what_is_stale_twice_is_mounted_anew_when_nobody_uses_it(
    world: World, port: Knocked
) -> None:
    target = port.target(world)
    await world.driver.connect(target)
    world.health.verdicts.extend([Verdict.STALE, Verdict.STALE])
    first = await world.driver.observe(target)
    assert isinstance(first, Present)
    assert not first.responsive
    assert await world.driver.observe(target) == Absent()
    world.mounter.failures.append(BusyError("busy"))
    with pytest.raises(BusyError):
        await world.driver.connect(target)
    found = await world.driver.connect(target)
    assert found.responsive
    assert [what for what, *_ in world.mounter.done] == ["mount", "unmount", "unmount", "mount"]


async def test_what_is_stale_is_taken_away_where_that_is_wanted(
    world: World, port: Knocked
) -> None:
    target = port.target(world, stale="always")
    await world.driver.connect(target)
    world.health.verdicts.extend([Verdict.STALE, Verdict.STALE])
    await world.driver.observe(target)
    await world.driver.observe(target)
    await world.driver.connect(target)
    assert [what for what, *_ in world.mounter.done] == ["mount", "detach", "mount"]


async def test_what_is_stale_stays_where_that_is_wanted(world: World, port: Knocked) -> None:
    target = port.target(world, stale="never")
    await world.driver.connect(target)
    world.health.verdicts.extend([Verdict.STALE] * 3)
    for _ in range(3):
        found = await world.driver.observe(target)
        assert isinstance(found, Present)
        assert not found.responsive


async def test_what_is_stale_and_of_others_stays(world: World) -> None:
    world.add(line(8, "/data", "host:/export"))
    world.table.refresh()
    world.health.verdicts.extend([Verdict.STALE] * 3)
    for _ in range(3):
        found = await world.driver.observe(here(world))
        assert isinstance(found, Present)
        assert not found.responsive


async def test_what_is_stale_no_more_is_left_as_it_is(world: World, port: Knocked) -> None:
    target = port.target(world)
    await world.driver.connect(target)
    world.health.verdicts.extend([Verdict.STALE, Verdict.STALE, Verdict.ANSWERS])
    await world.driver.observe(target)
    assert await world.driver.observe(target) == Absent()
    assert isinstance(await world.driver.observe(target), Present)
    assert isinstance(await world.driver.connect(target), Present)
    assert [what for what, *_ in world.mounter.done] == ["mount"]


async def test_what_is_stale_as_soon_as_it_is_mounted_is_an_error(
    world: World, port: Knocked
) -> None:
    target = port.target(world)
    world.health.verdicts.extend([Verdict.STALE, Verdict.STALE])
    await world.driver.connect(target)
    with pytest.raises(StaleError):
        await world.driver.connect(target)


# disconnecting


async def test_what_is_ours_is_unmounted(world: World, port: Knocked) -> None:
    target = port.target(world)
    found = await world.driver.connect(target)
    await world.driver.disconnect(target, found)
    assert world.mounter.done[-1] == ("unmount",)
    assert not world.mounted()


async def test_what_is_of_others_stays(world: World) -> None:
    world.add(line(8, "/data", "host:/export"))
    world.table.refresh()
    found = await world.driver.observe(here(world))
    assert isinstance(found, Present)
    await world.driver.disconnect(here(world), found)
    assert world.mounted() == ["host:/export"]
    assert not world.mounter.done


async def test_from_a_dead_server_it_is_detached_and_nobody_waits(
    world: World, port: Knocked
) -> None:
    target = port.target(world)
    found = await world.driver.connect(target)
    world.servers.go_down(Address("host", port.server.port))
    world.mounter.held.clear()
    async with asyncio.timeout(5):
        await world.driver.disconnect(target, found)
    assert [what for what, *_ in world.mounter.done] == ["mount", "detach"]
    assert not world.mounted()


async def test_when_the_server_dies_meanwhile_it_is_detached(world: World, port: Knocked) -> None:
    target = port.target(world)
    found = await world.driver.connect(target)
    world.mounter.held.clear()
    leaving = asyncio.create_task(world.driver.disconnect(target, found))
    await world.mounter.begun.wait()
    world.servers.go_down(Address("host", port.server.port))
    async with asyncio.timeout(5):
        await leaving
    assert [what for what, *_ in world.mounter.done] == ["mount", "unmount", "detach"]


@pytest.mark.parametrize("error", [BusyError("busy"), TimedOutError("slow")])
async def test_what_does_not_go_while_the_server_answers_is_not_forced(
    world: World, port: Knocked, error: AttemptError
) -> None:
    target = port.target(world)
    found = await world.driver.connect(target)
    world.mounter.failures.append(error)
    with pytest.raises(type(error)):
        await world.driver.disconnect(target, found)
    assert world.mounted() == ["host:/export"]
    assert ("detach",) not in world.mounter.done


# listing


def test_all_mounts_but_the_systems_and_the_kernels_own_are_listed(world: World) -> None:
    for one in (
        line(2, "/data", "host:/"),
        line(4, "/var", "host:/var"),
        line(5, "/mnt/a b", "[fd09::2]:/a b", shown=f"{SUPER},port=2050"),
        "6 2 0:6 / /data/export rw - nfs4 host:/export rw,vers=4.2",
        "7 2 0:7 / /data/other rw - nfs4 host:/export rw,vers=4.2",
        "8 1 0:8 / /mnt/c rw - ceph host:/x rw",
    ):
        world.add(one)
    world.table.refresh()
    listed = {foreign.uri: foreign.present.mountpoint for foreign in world.driver.foreign()}
    assert listed == {
        "nfs://host/": "/data",
        "nfs://[fd09::2]:2050/a%20b": "/mnt/a b",
        "nfs://host/export": "/data/other",
    }


# asking the server


@pytest.fixture
async def knfsd(world: World) -> AsyncIterator[World]:
    """Let a server with exports answer, as Linux 6.1 does."""
    world.servers.address = "127.0.0.84"
    exports = export_list(("/export", ("*",)), ("/with é", ()), ("/deny", ("10.9.0.77",)))

    def rpcbind(what: Procedure, _: bytes) -> bytes:
        return success(numbers(mountd.port if what == GETPORT else 0))

    def tell(what: Procedure, _: bytes) -> bytes:
        return exports if what == EXPORT else success()

    def serve(what: Procedure, arguments: bytes) -> bytes:
        if what != COMPOUND:
            return success()
        return success(numbers(0 if b"\0\0\0\x06export" in arguments else 2))

    address = world.servers.address
    async with (
        rpc_server(tell, address) as mountd,
        rpc_server(rpcbind, address, RPCBIND_PORT),
        rpc_server(serve, address) as world.nfs,
    ):
        yield world


@needs_root
@pytest.mark.root
class TestServer:
    async def test_its_exports_are_told_with_uris(self, knfsd: World) -> None:
        found = await knfsd.driver.discover("nfs://host", {})
        assert found == [
            {"uri": "nfs://host/export", "clients": ("*",)},
            {"uri": "nfs://host/with%20%C3%A9", "clients": ()},
            {"uri": "nfs://host/deny", "clients": ("10.9.0.77",)},
        ]

    async def test_without_mountd_there_is_the_root(self, world: World, port: Knocked) -> None:
        world.servers.address = "127.0.0.85"
        async with rpc_server(port.answer, world.servers.address) as server:
            found = await world.driver.discover(f"nfs://host:{server.port}", {})
        assert found == [{"uri": f"nfs://host:{server.port}/"}]

    @pytest.mark.parametrize("version", ["auto", "3", "4.2"])
    async def test_what_is_exported_is_valid(self, knfsd: World, version: str) -> None:
        await self.validate(knfsd, "/export", version)
        await self.validate(knfsd, "/export/below", version)

    @pytest.mark.parametrize("version", ["auto", "3", "4.2"])
    async def test_what_is_not_exported_is_not_offered(self, knfsd: World, version: str) -> None:
        with pytest.raises(NotOfferedError, match="/nothere"):
            await self.validate(knfsd, "/nothere", version)

    @pytest.mark.parametrize("version", ["auto", "4.2"])
    async def test_what_is_for_others_is_denied(self, knfsd: World, version: str) -> None:
        with pytest.raises(AccessDeniedError, match=r"exported to 10.9.0.77"):
            await self.validate(knfsd, "/deny", version)

    async def test_version_3_may_have_what_version_4_has_elsewhere(self, knfsd: World) -> None:
        await self.validate(knfsd, "/with é", "auto")
        with pytest.raises(NotOfferedError):
            await self.validate(knfsd, "/with é", "4.2")

    async def test_a_refusal_to_mount_is_told_more_exactly(self, knfsd: World) -> None:
        target = knfsd.driver.parse(f"nfs://host:{knfsd.nfs.port}/nothere", {})
        knfsd.mounter.failures.append(AccessDeniedError("access denied by server"))
        with pytest.raises(NotOfferedError):
            await knfsd.driver.connect(target)

    async def validate(self, world: World, path: str, version: str) -> None:
        options: dict[str, Value] = {"version": version, "mountpoint": world.point}
        target = world.driver.parse(f"nfs://host:{world.nfs.port}{path}", options)
        try:
            await world.driver.validate(target)
        except UnusableError as error:  # the last step: this machine
            assert "'nfs' is unknown" in str(error)  # noqa: PT017  # it may also go well


async def test_each_step_has_its_error(world: World, port: Knocked) -> None:
    world.servers.go_down(HOST)
    with pytest.raises(UnreachableError, match="host:2049 does not answer"):
        await world.driver.validate(here(world))
    port.versions = range(3, 4)
    with pytest.raises(ProtocolError, match="RPC program 100003"):
        await world.driver.validate(port.target(world, version="4.2"))
