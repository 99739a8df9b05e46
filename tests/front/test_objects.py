# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is told of the connections: the first change at once, the last always, few between."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.bus import wire
from storaged_conn.front.objects import PAUSE, Objects
from storaged_conn.names import CONNECTION, ROOT, object_path
from tests.front.clock import play
from tests.front.told import FRESH, INTERFACE, QUIET, SIGNALLED, Sent, World, turn, variants

# time


def test_the_first_change_is_told_in_the_same_turn_and_a_burst_is_one_signal() -> None:
    async def scene() -> None:
        world = World()
        world.add("a")
        for state in ("waiting", "connecting", "connected"):
            world.change("a", State=state)
        world.change("a", Connected=True)
        assert world.told("a") == []
        await turn()
        assert world.told("a") == [(0, {"State": "connected", "Connected": True})]

    play(scene())


def test_changes_are_told_no_more_than_every_pause_and_the_last_always() -> None:
    async def scene() -> None:
        world = World()
        world.add("a")
        for number in range(20):
            world.change("a", LastError=number + 1)
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        told = world.told("a")
        times = [at for at, _ in told]
        assert times[0] == 0
        assert all(after - before >= PAUSE - 1e-6 for before, after in pairwise(times))
        assert len(told) >= 4
        assert told[-1][1] == {"LastError": 20}

    play(scene())


def test_after_a_quiet_time_a_change_is_told_at_once_again() -> None:
    async def scene() -> None:
        world = World()
        world.add("a")
        for number in (1, 2, 3):
            world.change("a", LastError=number)
            await asyncio.sleep(2 * PAUSE)
        told = world.told("a")
        assert told == [(round(2 * PAUSE * n, 6), {"LastError": n + 1}) for n in range(3)]

    play(scene())


@pytest.mark.parametrize("ask", ["list", "managed", "all"])
def test_what_somebody_has_seen_is_told_even_if_it_is_taken_back(ask: str) -> None:
    async def scene() -> None:
        world = World()
        world.add("a")
        world.change("a", State="connecting")
        await turn()
        world.change("a", State="waiting")
        objects = world.objects
        {"list": objects.list_body, "managed": objects.managed_body}.get(
            ask, lambda: objects.all_body("a")
        )()
        world.change("a", State="connecting")
        await asyncio.sleep(1)
        assert [values["State"] for _, values in world.told("a")] == ["connecting", "connecting"]

    play(scene())


def test_a_change_that_is_taken_back_is_not_told() -> None:
    async def scene() -> None:
        world = World()
        world.add("a")
        world.change("a", State="waiting")
        world.change("a", State="")
        await turn()
        assert world.told("a") == []
        world.change("a", State="connecting")
        await turn()
        world.change("a", State="waiting", LastError=1)
        await turn()
        world.change("a", State="connecting", LastError=0)
        await asyncio.sleep(1)
        assert world.told("a") == [(0, {"State": "connecting"})]

    play(scene())


def test_one_object_does_not_wait_for_another() -> None:
    async def scene() -> None:
        world = World()
        world.add("a", "b")
        world.change("a", LastError=1)
        await turn()
        world.change("a", LastError=2)
        await asyncio.sleep(0.02)
        world.change("b", LastError=1)
        await turn()
        assert world.told("b") == [(0.02, {"LastError": 1})]
        await asyncio.sleep(PAUSE)
        assert world.told("a") == [(0, {"LastError": 1}), (PAUSE, {"LastError": 2})]

    play(scene())


@pytest.mark.parametrize("name", sorted(QUIET))
def test_what_is_const_or_not_signalled_is_never_told(name: str) -> None:
    async def scene() -> None:
        world = World()
        world.add("a")
        value = 7 if INTERFACE.properties[name].signature == "u" else "other"
        world.change("a", **{name: value})
        await asyncio.sleep(1)
        assert world.told("a") == []
        world.change("a", State="waiting")
        await turn()
        assert world.told("a") == [(1, {"State": "waiting"})]
        (shown,) = wire.read("a{sv}", world.objects.all_body("a"))
        const = INTERFACE.properties[name].emits == "const"
        assert (
            shown[name].value == (FRESH | {"ConnectionId": "a"} if const else {name: value})[name]
        )

    play(scene())


def test_while_the_bus_is_slow_changes_wait_and_the_last_is_told() -> None:
    async def scene() -> None:
        world = World()
        world.add("a", "b")
        world.bus.crowd(crowded=True)
        for number in range(100):
            world.change("a", LastError=number)
            await asyncio.sleep(0.01)
        assert world.told("a") == []
        world.add("c")
        world.remove("b")
        assert [one.member for one in world.bus.signals[2:]] == [
            "InterfacesAdded",
            "InterfacesRemoved",
        ]
        world.bus.crowd(crowded=False)
        await asyncio.sleep(2 * PAUSE)
        ((_, values),) = world.told("a")
        assert values == {"LastError": 99}

    play(scene())


def test_what_was_removed_is_told_of_no_more() -> None:
    async def scene() -> None:
        world = World()
        world.add("a")
        world.change("a", LastError=1)
        await turn()
        world.change("a", LastError=2)
        await turn()
        world.change("a", LastError=3)
        world.remove("a")
        world.objects.removed("a")
        world.objects.changed("a")
        await asyncio.sleep(1)
        assert [one.member for one in world.bus.signals] == [
            "InterfacesAdded",
            "PropertiesChanged",
            "InterfacesRemoved",
        ]
        assert not world.objects.has("a")

    play(scene())


def test_before_it_is_announced_nothing_is_told() -> None:
    async def scene() -> None:
        world = World()
        world.objects = Objects(world.bus, INTERFACE, world.states.get)
        world.add("a", "b")
        world.change("a", LastError=1)
        world.remove("b")
        await asyncio.sleep(1)
        assert world.bus.signals == []
        world.objects.announce()
        world.change("a", LastError=2)
        await turn()
        assert world.told("a") == [(1, {"LastError": 2})]

    play(scene())


def test_what_changed_before_and_is_taken_back_after_it_is_told() -> None:
    async def scene() -> None:
        world = World()
        world.objects = Objects(world.bus, INTERFACE, world.states.get)
        world.add("a")
        before = world.states["a"]["LastError"]
        world.change("a", LastError=1)
        await turn()
        world.objects.announce()
        world.change("a", LastError=before)
        await turn()
        assert [changes for _, changes in world.told("a")] == [{"LastError": before}]

    play(scene())


# where from


def test_objects_come_and_go_in_signals_of_the_manager_itself() -> None:
    """Where the specification wants them; dbus-next has them come from the objects' own paths."""

    async def scene() -> None:
        world = World()
        world.add("a b")
        world.remove("a b")
        added, removed = world.bus.signals
        path = object_path("a b")
        assert (added.path, removed.path) == (ROOT, ROOT)
        shown = variants(FRESH | {"ConnectionId": "a b"})
        assert added.body == [path, {CONNECTION: shown}]
        assert removed.body == [path, [CONNECTION]]

    play(scene())


# anything

STEPS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0.001, 0.01, 0.02, 0.049, 0.05, 0.051, 0.2]),
        st.sampled_from("ab"),
        st.sampled_from(["change", "change", "change", "add", "remove", "slow", "fast", "ask"]),
        st.integers(0, 2),
    ),
    max_size=40,
)


@given(STEPS)
def test_whoever_listens_knows_the_last_state_and_hears_little(
    steps: list[tuple[float, str, str, int]],
) -> None:
    async def scene() -> None:
        world = World()
        for delay, cid, what, number in steps:
            await asyncio.sleep(delay)
            act(world, cid, what, number)
        world.bus.crowd(crowded=False)
        await asyncio.sleep(2 * PAUSE + 0.001)
        assert listened(world.bus.signals) == {
            cid: {
                name: wire.plain(one) for name, one in variants(state).items() if name in SIGNALLED
            }
            for cid, state in world.states.items()
        }

    play(scene())


def act(world: World, cid: str, what: str, number: int) -> None:
    known = cid in world.states
    if what == "add" and not known:
        world.add(cid)
    elif what == "remove" and known:
        world.remove(cid)
    elif what == "change" and known:
        world.change(cid, LastError=number, Attempts=number)
    elif what in {"slow", "fast"}:
        world.bus.crowd(crowded=what == "slow")
    elif what == "ask":
        world.objects.list_body()


def listened(signals: list[Sent]) -> dict[str, dict[str, object]]:
    """Follow all signals as a client does, and check each."""
    known: dict[str, dict[str, object]] = {}
    last: dict[str, float] = {}
    paths = {object_path(cid): cid for cid in "ab"}
    for one in signals:
        if one.member == "PropertiesChanged":
            cid = paths[one.path]
            assert one.values.keys() <= SIGNALLED
            assert all(known[cid][name] != value for name, value in one.values.items())
            assert one.at - last.get(cid, -1) >= PAUSE - 1e-6
            known[cid] |= one.values
            last[cid] = one.at
            continue
        cid = paths[one.body[0]]
        last.pop(cid, None)
        if one.member == "InterfacesRemoved":
            del known[cid]
        else:
            shown = wire.plain(one.body[1][CONNECTION])
            assert isinstance(shown, dict)
            known[cid] = {name: shown[name] for name in SIGNALLED}
    return known
