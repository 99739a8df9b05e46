# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is listed is joined from pieces, and is what dbus-next would marshal as a whole."""

from typing import Any

from dbus_next._private.marshaller import Marshaller
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.front.objects import LISTED
from storaged_conn.names import CONNECTION, object_path
from tests.front.clock import play
from tests.front.told import INTERFACE, QUIET, World, variants

short = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
values: dict[str, st.SearchStrategy[Any]] = {
    "b": st.booleans(),
    "s": short,
    "i": st.integers(0, 99),
    "u": st.integers(0, 2**32 - 1),
    "t": st.integers(0, 2**64 - 1),
    "as": st.lists(short, max_size=2).map(tuple),
    "a{sv}": st.dictionaries(short, st.booleans() | st.integers(-9, 9) | short, max_size=3),
}
states = st.fixed_dictionaries(
    {name: values[one.signature] for name, one in INTERFACE.properties.items()}
)


def by_dbus_next(signature: str, body: object) -> bytes:
    return bytes(Marshaller(signature, [body]).marshall())


@given(st.dictionaries(short, st.tuples(states, states), max_size=2))
def test_listings_are_what_dbus_next_marshals(connections: dict[str, Any]) -> None:
    async def scene() -> None:
        world = World()
        for cid, (before, _) in connections.items():
            world.states[cid] = before
            world.objects.added(cid)
        for cid, (before, after) in connections.items():
            constant = {name: before[name] for name in QUIET - {"Attempts", "Reconnects"}}
            world.change(cid, **after | constant)
        compare(world)

    play(scene())


def compare(world: World) -> None:
    shown = {cid: variants(state) for cid, state in world.states.items()}
    listed = {
        cid: {alias: one[name] for name, alias in LISTED.items()} for cid, one in shown.items()
    }
    managed = {object_path(cid): {CONNECTION: one} for cid, one in shown.items()}
    assert world.objects.list_body() == by_dbus_next("a{sa{sv}}", listed)
    assert world.objects.managed_body() == by_dbus_next("a{oa{sa{sv}}}", managed)
    for cid, one in shown.items():
        assert world.objects.all_body(cid) == by_dbus_next("a{sv}", one)
