# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.core.model import Absent, Present, Target, Topic, Value
from storaged_conn.core.secret import Secret
from storaged_conn.drivers.simulated import FAILURES, SimulatedDriver
from storaged_conn.errors import (
    AttemptError,
    BusyError,
    InvalidArgumentError,
    ServerRefusedError,
    UnreachableError,
)
from storaged_conn.system.sentinel import Address
from storaged_conn.system.servers import Servers

SERVER = Address("nas", 2049)


class FakeServers(Servers):
    """Servers that are as a test says.

    Attributes:
        down: why a server does not answer.
        reached: who was connected to, in order.
    """

    def __init__(self) -> None:
        self.down: dict[Address, AttemptError] = {}
        self.reached: list[Address] = []

    def failure(self, address: Address) -> AttemptError | None:
        return self.down.get(address)

    @asynccontextmanager
    async def reach(self, address: Address, *, holds: bool = True) -> AsyncIterator[str]:
        self.reached.append(address)
        if error := self.down.get(address):
            raise error
        yield address.host


class World:
    """A driver, its servers and its news."""

    def __init__(self) -> None:
        self.servers = FakeServers()
        self.driver = SimulatedDriver(self.servers)
        self.driver.news = self._hear
        self._news: asyncio.Queue[Topic] = asyncio.Queue()

    def target(self, uri: str = "simulated:a", /, **options: Value) -> Target:
        return self.driver.parse(uri, {k.replace("_", "-"): v for k, v in options.items()})

    async def news(self) -> Topic:
        return await asyncio.wait_for(self._news.get(), 20)

    def _hear(self, topic: Topic) -> None:
        self._news.put_nowait(topic)


@pytest.fixture
def world() -> World:
    return World()


# what is parsed

SPELLINGS = {
    "simulated:a": "simulated:a",
    "simulated:a b%20c": "simulated:a%20b%20c",
    "simulated:a:1?x#y": "simulated:a%3A1%3Fx%23y",
    "SIMULATED:%61": "simulated:a",
    "simulated://HOST.:080/a": "simulated://host:80/a",
    "simulated://[2001:DB8::0:1]:80/a%2e": "simulated://[2001:db8::1]:80/a.",
    "simulated://192.0.2.1:1/a:": "simulated://192.0.2.1:1/a%3A",
}


@pytest.mark.parametrize(("uri", "canonical"), SPELLINGS.items())
def test_a_uri_has_one_canonical_form(world: World, uri: str, canonical: str) -> None:
    target = world.target(uri)
    assert target == Target(canonical)
    assert world.target(canonical) == target


BAD = ["simulated:", "simulated:a/b", "simulated:/a", "simulated:%2F", "simulated://nas:1"]
BAD += ["simulated://nas:1/", "simulated://nas:1/a/b", "simulated:///a", "simulated://:1/a"]
BAD += ["simulated://nas/a", "simulated://nas:0/a", "simulated://nas:70000/a", "simulated:////a"]
BAD += ["simulated://-x:1/a", "simulated://a b:1/a", "simulated://nas:1?a/b", "simulated://[x]:1/a"]


@pytest.mark.parametrize("uri", BAD)
def test_what_is_no_such_uri_is_refused(world: World, uri: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^uri: "):
        world.target(uri)


@given(st.text(min_size=1))
def test_any_name_is_refused_or_keeps_its_form(name: str) -> None:
    world = World()
    for prefix in ("simulated:", "simulated://nas:1/"):
        try:
            target = world.target(prefix + name)
        except InvalidArgumentError:
            continue
        assert world.target(target.uri) == target


def test_options_make_another_connection_in_any_order(world: World) -> None:
    one = world.driver.parse("simulated:a", {"stall": True, "latency-ms": 1})
    other = world.driver.parse("simulated:a", {"latency-ms": 1, "stall": True})
    assert one == other != world.target("simulated:a")


@pytest.mark.parametrize(
    ("name", "value"), [("latency-ms", -1), ("outage-ms", -5), ("fail-with", "Nonsense")]
)
def test_an_option_that_makes_no_sense_is_refused(world: World, name: str, value: Value) -> None:
    with pytest.raises(InvalidArgumentError, match=f"options: '{name}' must"):
        world.driver.parse("simulated:a", {name: value})


def test_a_server_is_a_topic_of_its_own(world: World) -> None:
    assert world.driver.topics(world.target()) == {Topic("simulated", "simulated:a")}
    uri = "simulated://[::1]:1/a"
    expected = {Topic("simulated", uri), Topic("server", "[::1]:1")}
    assert world.driver.topics(world.target(uri)) == expected


# what it does


async def test_what_is_connected_is_there_until_it_is_disconnected(world: World) -> None:
    target = world.target("simulated:a b")
    assert await world.driver.observe(target) == Absent()
    present = await world.driver.connect(target)
    assert present == Present("simulated-a%20b", ours=True, info={"name": "a%20b", "latencyMs": 0})
    assert await world.driver.observe(target) == await world.driver.connect(target) == present
    await world.driver.disconnect(target, present)
    assert await world.driver.observe(target) == Absent()
    await world.driver.disconnect(target, None)  # already gone is success


async def test_latency_is_waited_for_both_ways(world: World) -> None:
    target, clock = world.target(latency_ms=20), asyncio.get_running_loop().time
    for work in (world.driver.connect(target), world.driver.disconnect(target, None)):
        begun = clock()
        await work
        assert clock() - begun >= 0.019  # the loop may be a little early


@pytest.mark.parametrize("name", FAILURES)
async def test_the_first_attempts_fail_as_told(world: World, name: str) -> None:
    target = world.target(fail_first=2, fail_with=name)
    for _ in range(2):
        with pytest.raises(FAILURES[name], match="simulated to fail"):
            await world.driver.connect(target)
        assert await world.driver.observe(target) == Absent()
    assert isinstance(await world.driver.connect(target), Present)


async def test_attempts_fail_anew_after_a_disconnect(world: World) -> None:
    target = world.target(fail_first=1)
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await world.driver.connect(target)
        await world.driver.connect(target)
        await world.driver.disconnect(target, None)


async def test_the_first_disconnects_find_it_busy(world: World) -> None:
    target = world.target(busy_first=2)
    present = await world.driver.connect(target)
    for _ in range(2):
        with pytest.raises(BusyError):
            await world.driver.disconnect(target, present)
        assert await world.driver.observe(target) == present
    await world.driver.disconnect(target, present)
    assert await world.driver.observe(target) == Absent()


async def test_an_outage_loses_it_and_ends(world: World) -> None:
    target = world.target(outage_after_ms=1, outage_ms=1, fail_with="Busy")
    await world.driver.connect(target)
    assert await world.news() == Topic("simulated", "simulated:a")
    assert await world.driver.observe(target) == Absent()
    if target in world.driver._out:  # it may have ended already on a slow machine
        with pytest.raises(BusyError):
            await world.driver.connect(target)
    assert await world.news() == Topic("simulated", "simulated:a")
    assert await world.driver.observe(target) == Absent()  # it does not come back by itself
    assert isinstance(await world.driver.connect(target), Present)
    await world.driver.disconnect(target, None)


async def test_a_stall_keeps_it_and_the_server_is_silent(world: World) -> None:
    target = world.target(outage_after_ms=1, outage_ms=200, stall=True)
    present = await world.driver.connect(target)
    await world.news()
    stalled = await world.driver.observe(target)
    assert stalled == Present(present.name, ours=True, responsive=False, info=present.info)
    await world.news()
    assert await world.driver.observe(target) == present
    await world.driver.disconnect(target, present)


async def test_a_disconnect_ends_what_was_to_come(world: World) -> None:
    for options in ({"outage_after_ms": 60_000}, {"outage_after_ms": 1, "outage_ms": 60_000}):
        target = world.target(**options)
        await world.driver.connect(target)
        if "outage_ms" in options:
            await world.news()
        timer = world.driver._timers[target]
        await world.driver.disconnect(target, None)
        assert timer.cancelled()
        assert not world.driver._timers


async def test_validation_tells_what_an_attempt_would_meet(world: World) -> None:
    await world.driver.validate(world.target())
    with pytest.raises(BusyError):
        await world.driver.validate(world.target(fail_first=1, fail_with="Busy"))
    assert await world.driver.observe(world.target()) == Absent()


# with a server


async def test_a_server_is_needed_to_connect(world: World) -> None:
    target = world.target("simulated://nas:2049/a")
    world.servers.down[SERVER] = ServerRefusedError("nothing answers")
    for work in (world.driver.connect, world.driver.validate):
        with pytest.raises(ServerRefusedError):
            await work(target)
    assert await world.driver.observe(target) == Absent()
    world.servers.down.clear()
    await world.driver.validate(target)
    present = await world.driver.connect(target)
    assert present.info == {"name": "//nas:2049/a", "latencyMs": 0, "hostname": "nas", "port": 2049}
    assert world.servers.reached == [SERVER] * 4


async def test_what_is_lost_with_its_server_needs_a_new_attempt(world: World) -> None:
    target = world.target("simulated://nas:2049/a")
    present = await world.driver.connect(target)
    world.servers.down[SERVER] = UnreachableError("silent")
    assert await world.driver.observe(target) == Absent()
    world.servers.down.clear()
    assert await world.driver.observe(target) == Absent()
    assert await world.driver.connect(target) == present


async def test_what_stalls_with_its_server_is_there_again_with_it(world: World) -> None:
    target = world.target("simulated://nas:2049/a", stall=True)
    world.servers.down[SERVER] = UnreachableError("silent")
    assert await world.driver.observe(target) == Absent()  # it was never connected
    world.servers.down.clear()
    present = await world.driver.connect(target)
    world.servers.down[SERVER] = UnreachableError("silent")
    stalled = await world.driver.observe(target)
    assert stalled == Present(present.name, ours=True, responsive=False, info=present.info)
    world.servers.down.clear()
    assert await world.driver.observe(target) == present


def test_a_password_is_no_part_of_what_is_connected(world: World) -> None:
    one = world.target(latency_ms=1, password=Secret(b"x"))
    assert one == world.target(latency_ms=1)
    assert one.options == (("latency-ms", 1),)
    assert one.secrets == (("password", Secret(b"x")),)
