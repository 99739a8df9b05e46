# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
from collections import deque
from collections.abc import Coroutine
from pathlib import Path

import pytest

from storaged_conn.core.model import Absent, Present, Target, Value
from storaged_conn.drivers.nvme import NvmeDriver
from storaged_conn.drivers.nvme_registry import Registry
from storaged_conn.drivers.nvme_table import Table
from storaged_conn.errors import (
    AccessDeniedError,
    AttemptError,
    AuthenticationError,
    BusyError,
    NotOfferedError,
    ServerRefusedError,
    TimedOutError,
    TroubleError,
    UnreachableError,
)
from storaged_conn.system.fabrics import ThereError, UnexplainedError
from storaged_conn.system.mountinfo import MountTable
from storaged_conn.system.sentinel import Address
from tests.drivers.nfs_world import FakeServers
from tests.nvme import NQN, Kernel
from tests.nvme_target import Subsystem, serving

URI = f"nvme+tcp://10.0.0.1/{NQN}"
NAMED = f"nvme+tcp://storage.example/{NQN}"
SERVER = Address("10.0.0.1", 4420)
UUID = "/dev/disk/by-id/nvme-uuid.9e66cb56-ae14-4a89-81ee-a9167548d396"


class FakeFabrics:
    """Connects by making directories.

    Attributes:
        done: what was asked for.
        failures: what the next connects raise, after they took effect if they time out.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.done: list[tuple[str, ...]] = []
        self.failures: deque[Exception] = deque()
        self._kernel = kernel

    async def connect(self, line: bytes) -> str:
        fields = dict(word.partition("=")[::2] for word in line.decode().split(","))
        self.done.append(("connect", fields["traddr"], fields["nqn"]))
        failure = self.failures.popleft() if self.failures else None
        if not failure or isinstance(failure, TimedOutError):
            address = f"traddr={fields['traddr']},trsvcid={fields['trsvcid']}"
            self._kernel.connect("nvme7", fields["nqn"], address=address)
        if failure:
            raise failure
        return "nvme7"

    async def delete(self, name: str, serial: int, *, silent: bool) -> None:
        self.done.append(("delete", name, *(["silent"] if silent else [])))
        self._kernel.remove(name)

    async def hurry(self, address: str, port: int) -> None:
        self.done.append(("hurry", address, str(port)))

    async def check(self, line: bytes) -> None:
        self.done.append(("check",))


class World:
    def __init__(self, ground: Path, tasks: asyncio.TaskGroup) -> None:
        self.kernel = Kernel(ground)
        self.registry = Registry(ground / "registry/entries")
        self.servers = FakeServers()
        self.servers.address = "10.0.0.1"
        (ground / "table").write_text("")
        self.mounts = MountTable(ground / "table")
        self.fabrics = FakeFabrics(self.kernel)
        self.tasks = tasks
        self._plans = ground / "plans"
        self.driver = self.start()

    def start(self) -> NvmeDriver:
        """Start the driver, as after a restart."""
        table = Table(self.kernel.controllers, self.registry, self.servers, self._plans)
        return NvmeDriver(table, self.mounts, self.servers, self._spawn, self.fabrics)

    def target(self, uri: str = URI, **options: Value) -> Target:
        named = {name.replace("_", "-"): value for name, value in options.items()}
        return self.driver.parse(uri, named)

    def _spawn(self, doing: Coroutine[object, object, None]) -> object:
        return self.tasks.create_task(doing)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, asyncio.TaskGroup())


async def connect(world: World, target: Target) -> Present:
    found = await world.driver.connect(target)
    assert await world.driver.observe(target) == found
    return found


async def test_what_is_connected_is_ours_and_waits_for_its_devices(world: World) -> None:
    target = world.target()
    assert await world.driver.observe(target) == Absent()
    found = await connect(world, target)
    assert (found.name, found.ours, found.pending) == ("nvme7", True, "waiting-for-devices")
    world.kernel.add("nvme7", "nvme7c7n1", "259:1", UUID)
    found = await connect(world, target)
    assert (found.devices, found.pending) == ((UUID,), "")
    assert found.info["owner"] == "storaged-conn"
    assert world.fabrics.done == [("connect", "10.0.0.1", NQN)]


async def test_what_others_connected_is_adopted_and_left_alone(world: World) -> None:
    world.kernel.connect("nvme3")
    found = await connect(world, world.target())
    assert (found.name, found.ours) == ("nvme3", False)
    await world.driver.disconnect(world.target(), found)
    assert world.fabrics.done == []


async def test_what_was_connected_for_another_host_is_another(world: World) -> None:
    world.kernel.connect("nvme3")
    target = world.target(host_nqn="nqn.2014-08.org.example:other")
    assert await world.driver.observe(target) == Absent()
    target = world.target(host_nqn="nqn.2014-08.org.example:host")
    assert isinstance(await world.driver.observe(target), Present)


async def test_by_a_name_it_is_found_after_it_was_resolved_and_after_a_restart(
    world: World,
) -> None:
    target = world.target(NAMED)
    await connect(world, target)
    world.driver = world.start()
    world.servers.failures[Address("storage.example", 4420)] = UnreachableError("gone")
    found = await connect(world, target)
    assert (found.ours, found.responsive) == (True, False)
    (foreign,) = world.driver.foreign()
    assert foreign.uri == NAMED


async def test_what_was_connected_by_another_name_is_shared_and_not_ended(world: World) -> None:
    named = await connect(world, world.target(NAMED))
    found = await connect(world, world.target())
    assert (found.name, found.ours) == (named.name, False)
    await world.driver.disconnect(world.target(), found)
    assert world.fabrics.done == [("connect", "10.0.0.1", NQN)]


async def test_somebody_elses_is_found_by_a_name_when_its_address_is_known(world: World) -> None:
    world.kernel.connect("nvme3")
    target = world.target(NAMED)
    assert await world.driver.observe(target) == Absent()
    assert (await connect(world, target)).name == "nvme3"


async def test_a_crash_in_between_leaves_what_is_ours(world: World, tmp_path: Path) -> None:
    target = world.target()
    world.fabrics.failures.append(TimedOutError("killed"))
    assert (await connect(world, target)).ours
    world.kernel.remove("nvme7")
    Table(world.kernel.controllers, world.registry, world.servers, tmp_path / "plans").plan(
        target, "10.0.0.1"
    )
    world.kernel.connect("nvme8")
    world.driver = world.start()
    found = await connect(world, target)
    assert (found.name, found.ours) == ("nvme8", True)
    await world.driver.disconnect(target, found)
    assert world.fabrics.done[-1] == ("delete", "nvme8")


async def test_a_failure_leaves_no_claim_on_what_others_make_later(world: World) -> None:
    target = world.target()
    world.fabrics.failures.append(UnreachableError("silent"))
    with pytest.raises(UnreachableError):
        await world.driver.connect(target)
    world.kernel.connect("nvme3")
    assert not (await connect(world, target)).ours


async def test_who_was_quicker_is_adopted(world: World) -> None:
    world.fabrics.failures.append(ThereError("there"))
    world.kernel.connect("nvme3", state="deleting")
    with pytest.raises(BusyError):
        await world.driver.connect(world.target())
    world.kernel.say("nvme3", "live")
    assert (await connect(world, world.target())).name == "nvme3"


@pytest.mark.parametrize("state", ["resetting", "connecting", "new"])
async def test_only_what_is_live_answers(world: World, state: str) -> None:
    target = world.target()
    await connect(world, target)
    world.kernel.say("nvme7", state)
    assert not (await connect(world, target)).responsive
    world.kernel.say("nvme7", "live")
    assert (await connect(world, target)).responsive
    world.servers.go_down(SERVER)
    assert not (await connect(world, target)).responsive


@pytest.mark.parametrize("state", ["deleting", "deleting (no IO)", "dead"])
async def test_what_is_going_is_unknown_until_it_is_gone(world: World, state: str) -> None:
    target = world.target()
    await connect(world, target)
    world.kernel.say("nvme7", state)
    assert await world.driver.observe(target) is None
    assert list(world.driver.foreign()) == []
    with pytest.raises(BusyError):
        await world.driver.disconnect(target, None)
    world.kernel.remove("nvme7")
    await world.driver.disconnect(target, None)
    assert await world.driver.observe(target) == Absent()


async def test_what_is_in_use_stays_unless_force_is_given(world: World, tmp_path: Path) -> None:
    for target, stays in ((world.target(), True), (world.target(force=True), False)):
        found = await connect(world, target)
        world.kernel.add("nvme7", "nvme7c7n1", "259:1", UUID)
        (tmp_path / "table").write_text("9 1 259:1 / /srv rw - ext4 /dev/nvme7n1 rw\n")
        if stays:
            with pytest.raises(BusyError, match="/srv"):
                await world.driver.disconnect(target, found)
            (tmp_path / "table").write_text("")
        await world.driver.disconnect(target, found)
        assert await world.driver.observe(target) == Absent()


async def test_what_has_another_way_may_go_though_it_is_in_use(
    world: World, tmp_path: Path
) -> None:
    target = world.target()
    found = await connect(world, target)
    world.kernel.add("nvme7", "nvme7c7n1", "259:1", UUID)
    (tmp_path / "table").write_text("9 1 259:1 / /srv rw - ext4 /dev/nvme7n1 rw\n")
    world.kernel.connect("nvme8", address="traddr=10.0.0.2,trsvcid=4420", state="connecting")
    world.kernel.add("nvme8", "nvme7c8n1", "259:1", UUID)
    with pytest.raises(BusyError):
        await world.driver.disconnect(target, found)
    world.kernel.say("nvme8", "live")
    await world.driver.disconnect(target, found)
    assert world.fabrics.done[-1] == ("delete", "nvme7")


async def test_what_went_while_we_were_killed_is_forgotten(world: World, tmp_path: Path) -> None:
    await connect(world, world.target())
    world.kernel.remove("nvme7")
    await world.start().disconnect(world.target(), None)
    assert list((tmp_path / "registry/entries").iterdir()) == []


async def test_another_name_of_the_server_takes_nothing_from_the_first(world: World) -> None:
    target, other = world.target(), world.target(NAMED)
    found = await connect(world, target)
    assert not (await connect(world, other)).ours
    await world.driver.disconnect(other, None)
    assert (await world.driver.observe(target)) == found


async def test_what_another_owner_has_claimed_is_not_disconnected(
    world: World, tmp_path: Path
) -> None:
    target = world.target()
    found = await connect(world, target)
    (tmp_path / "registry/entries/nvme7/owner").write_text("stas\n")
    await world.driver.disconnect(target, found)
    assert world.fabrics.done == [("connect", "10.0.0.1", NQN)]


async def test_an_owner_of_what_had_the_name_before_is_not_believed(
    world: World, tmp_path: Path
) -> None:
    entry = tmp_path / "registry/entries/nvme7"
    entry.mkdir(parents=True)
    (entry / "owner").write_text("stas\n")
    found = await connect(world, world.target())
    assert (found.ours, found.info["owner"]) == (True, "storaged-conn")
    await world.driver.disconnect(world.target(), found)
    assert not entry.exists()


async def test_all_controllers_are_listed_whoever_made_them(world: World) -> None:
    world.kernel.connect("nvme1", address="traddr=fd09::2,trsvcid=8009")
    world.kernel.connect("nvme2", transport="pcie")
    traddr = "nn-0x2000001000000001:pn-0x1000001000000001"
    world.kernel.connect("nvme3", transport="fc", address=f"traddr={traddr}")
    assert [one.uri for one in world.driver.foreign()] == [
        f"nvme+tcp://[fd09::2]:8009/{NQN}",
        f"nvme+fc://{traddr}/{NQN}",
    ]


async def test_the_same_with_other_options_clashes_and_another_host_does_not(
    world: World,
) -> None:
    first = world.target(keep_alive=7)
    assert "keep-alive=7" in world.driver.clash(world.target(), first)
    assert not world.driver.clash(world.target(host_iface="eth1"), first)
    assert not world.driver.clash(world.target(NAMED), first)


async def test_a_servers_return_hurries_what_the_kernel_is_connecting(tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as tasks:
        world = World(tmp_path, tasks)
        await connect(world, world.target())
        world.servers.go_down(SERVER)
        world.servers.come_back(SERVER)
        world.kernel.say("nvme7", "connecting")
        world.servers.come_back(Address("10.0.0.2", 4420))
        world.servers.go_down(SERVER)
        world.servers.come_back(SERVER)
    assert world.fabrics.done[1:] == [("hurry", "10.0.0.1", "4420")]


@pytest.mark.parametrize("failure", [UnexplainedError("EIO"), ServerRefusedError("refused")])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((0x182, 1 << 16 | 256), NotOfferedError),
        ((0x184, 1 << 16 | 512), AccessDeniedError),
        ((0, 1 | 1 << 17), AuthenticationError),
        ((0, 1), TroubleError),
    ],
)
async def test_what_the_kernel_does_not_explain_the_subsystem_does(
    world: World, failure: Exception, answer: tuple[int, int], error: type[AttemptError]
) -> None:
    world.servers.address = "127.0.0.1"
    world.fabrics.failures.append(failure)
    async with serving(Subsystem(lambda command, data: (*answer, b""))) as server:
        with pytest.raises(error):
            await world.driver.connect(world.target(f"nvme+tcp://{server.text}/{NQN}"))
    assert await world.driver.observe(world.target()) == Absent()


async def test_with_tls_nothing_is_asked_but_the_kernel(world: World) -> None:
    world.servers.address = "127.0.0.1"
    world.fabrics.failures.append(UnexplainedError("EIO"))
    async with serving(Subsystem(lambda command, data: (0x184, 0, b""))) as server:
        target = world.target(f"nvme+tcp://{server.text}/{NQN}", tls=True)
        await world.driver.validate(target)
        with pytest.raises(TroubleError, match="tlshd"):
            await world.driver.connect(target)


async def test_a_server_that_is_down_is_not_asked(world: World) -> None:
    world.servers.go_down(SERVER)
    with pytest.raises(UnreachableError):
        await world.driver.connect(world.target())
    with pytest.raises(UnreachableError):
        await world.driver.validate(world.target())
    assert world.fabrics.done == []
