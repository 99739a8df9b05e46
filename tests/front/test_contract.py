# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service is what dbus/*.xml says, and dbus/*.xml says all of it."""

import asyncio
import re
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import pytest

from storaged_conn import errors
from storaged_conn.front import turns
from storaged_conn.front.contract import EMITS, Interface, load
from storaged_conn.front.dispatch import MAX_CALL
from storaged_conn.front.flight import MAX_OF_CALLER
from storaged_conn.front.objects import PAUSE
from storaged_conn.front.polkit import MAX_CHECKS
from storaged_conn.front.turns import MAX_WAITING
from storaged_conn.manager import MAX_OF_USER
from storaged_conn.names import (
    CONNECTION,
    INTROSPECTABLE,
    MANAGER,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
    ROOT,
    SERVICE,
    object_path,
)
from storaged_conn.runner import PUBLIC
from tests.caller import Service, refused, serving
from tests.live import DEADLINE

CID: Final = "é 1"
LEAF: Final = object_path(CID)
ABOVE: Final = ("/", "/org", "/org/storage")
BUS_ERROR: Final = "org.freedesktop.DBus.Error."
CONTRACT: Final = load()
FILES: Final = {
    name: Path(__file__).parents[2] / "dbus" / f"{name}.xml" for name in (MANAGER, CONNECTION)
}
FAILURES: Final = [
    one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, errors.ConnError)
]
OBJECTS: Final = {ROOT: MANAGER, LEAF: CONNECTION}


def declared(name: str, *, comments: bool = False) -> ET.Element:
    """Read an interface out of its file."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=comments))
    found = ET.parse(FILES[name], parser).getroot().find("interface")
    assert found is not None
    return found


def canonical(element: ET.Element) -> str:
    return ET.canonicalize(ET.tostring(element), strip_text=True)


# its documentation


def documented(name: str) -> Iterator[tuple[ET.Element, str]]:
    """Pair each member of an interface with the comment before it."""
    comment = ""
    for element in declared(name, comments=True):
        if callable(element.tag):
            comment = element.text or ""
        else:
            yield element, comment
            comment = ""


MEMBERS: Final = [
    pytest.param(element, comment, id=element.attrib["name"])
    for name in FILES
    for element, comment in documented(name)
]


@pytest.mark.parametrize(("element", "comment"), MEMBERS)
def test_every_member_and_every_argument_is_documented(element: ET.Element, comment: str) -> None:
    heading, _, text = comment.strip().partition(":")
    assert heading == element.attrib["name"]
    assert len(text.split()) > 1
    arguments = {argument.attrib["name"] for argument in element.iter("arg")}
    assert set(re.findall(r"@(\w+):", text)) == arguments


@pytest.mark.parametrize("name", FILES)
def test_every_interface_is_documented(name: str) -> None:
    assert re.search(
        rf"<!--\s+{re.escape(name)}:\s+@short_description: \w", FILES[name].read_text()
    )


def test_every_error_is_documented_with_its_number_and_no_other() -> None:
    text = FILES[MANAGER].read_text()
    named = [one for one in FAILURES if hasattr(one, "name")]
    assert sorted(re.findall(r"(\w+) \((\d+)\)", text)) == sorted(
        (one.name, str(one.code)) for one in named
    )
    assert len({one.name for one in named}) == len({one.code for one in named}) == len(named)
    known = {one.name for one in named}
    for name in FILES:
        for _, comment in documented(name):
            for listing in re.findall(r"Errors: (.*)", comment, re.DOTALL):
                assert set(re.findall(r"\b[A-Z][a-z]+[A-Z]\w+\b", listing)) <= known


def test_limits_and_states_are_documented_as_they_are() -> None:
    manager, connection = (FILES[name].read_text() for name in (MANAGER, CONNECTION))
    assert f"more than {MAX_CALL // 1024} KiB" in manager
    assert f"more than {MAX_WAITING} waiting" in manager
    told = " ".join(manager.split())
    assert f"more than {turns.MAX_OF_USER} calls or more than {MAX_OF_USER} connections" in told
    assert f"more than {MAX_CHECKS} calls about which polkit is being asked" in told
    assert f"more than {MAX_OF_CALLER >> 20} MiB of replies unread" in told
    assert f"every {PAUSE * 1000:.0f} ms" in connection
    described = connection.partition("States:")[2].partition("-->")[0]
    assert set(re.findall(r'"(\w+)"', described)) == set(PUBLIC.values())
    reasons = {one.reason for one in FAILURES if hasattr(one, "reason")}
    listed = connection.partition("One of:")[2].partition("More may be added")[0]
    assert all(reason in listed for reason in reasons)


# the service


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as service:
        await service.caller.manage("simulated:a", CID)
        yield service


async def introspected(service: Service, path: str) -> ET.Element:
    (text,) = await service.caller.call("Introspect", path=path, interface=INTROSPECTABLE)
    return ET.fromstring(text)


def children(node: ET.Element) -> list[str]:
    return [child.attrib["name"] for child in node.findall("node")]


@pytest.mark.bus
async def test_introspection_gives_the_contract_and_the_way_down(service: Service) -> None:
    for path, name in OBJECTS.items():
        node = await introspected(service, path)
        found = {one.attrib["name"]: one for one in node.findall("interface")}
        assert canonical(found.pop(name)) == canonical(declared(name))
        standard = {PEER, INTROSPECTABLE, PROPERTIES} | (
            {OBJECT_MANAGER} if path == ROOT else set()
        )
        assert found.keys() == standard
    for path, child in pairwise((*ABOVE, ROOT, LEAF)):
        names = children(await introspected(service, path))
        assert child.rpartition("/")[2] in names
        assert len(names) == 1 or path == ROOT
    assert children(await introspected(service, LEAF)) == []


@pytest.mark.bus
async def test_properties_are_as_declared_and_cannot_be_set(service: Service) -> None:
    for path, name in OBJECTS.items():
        for one in CONTRACT[name].properties.values():
            for interface in (name, ""):
                (value,) = await raw(service, path, "Get", "ss", interface, one.name)
                assert value.signature == one.signature
                with refused(BUS_ERROR + "PropertyReadOnly") as refusal:
                    await raw(service, path, "Set", "ssv", interface, one.name, value)
                assert one.name in refusal.text
        for interface, expected in ((name, True), ("", True), (PEER, False), (PROPERTIES, False)):
            (values,) = await raw(service, path, "GetAll", "s", interface)
            assert list(values) == (list(CONTRACT[name].properties) if expected else [])
            for key, value in values.items():
                assert value.signature == CONTRACT[name].properties[key].signature


async def raw(service: Service, path: str, member: str, signature: str, *body: object) -> Any:
    """Call a method of Properties; the result keeps its variants."""
    where = (SERVICE, path, PROPERTIES, member)
    return await service.caller.bus.call(where, signature, body, timeout=DEADLINE)


@pytest.mark.bus
async def test_properties_that_are_not_there_are_refused_by_name(service: Service) -> None:
    for path, name in OBJECTS.items():
        for interface, wanted, error in (
            (name, "Nothing", "UnknownProperty"),
            ("", "Nothing", "UnknownProperty"),
            (PEER, "Version", "UnknownProperty"),
            ("a.b", "Version", "UnknownInterface"),
        ):
            with refused(BUS_ERROR + error):
                await raw(service, path, "Get", "ss", interface, wanted)
        with refused(BUS_ERROR + "UnknownInterface"):
            await raw(service, path, "GetAll", "s", "a.b")
    with refused(BUS_ERROR + "UnknownInterface"):
        await raw(service, "/org", "GetAll", "s", "")


def machine_id() -> str:
    """This machine's, or nobody's where it has none."""
    path = Path("/etc/machine-id")
    return path.read_text().strip() if path.exists() else "0" * 32


@pytest.mark.bus
async def test_peer_answers_everywhere_and_always(service: Service) -> None:
    for path in (ROOT, LEAF, *ABOVE):
        for _ in range(2):
            assert await service.caller.call("Ping", path=path, interface=PEER) == []
            (found,) = await service.caller.call("GetMachineId", path=path, interface=PEER)
            assert found == machine_id()


@pytest.mark.bus
async def test_what_is_not_there_is_unknown(service: Service) -> None:
    for path in ("/no", f"{ROOT}/no", f"{LEAF}/no", f"{ROOT}/_", "/org/storage/Connectio"):
        for interface, member in ((PEER, "Ping"), (INTROSPECTABLE, "Introspect")):
            with refused(BUS_ERROR + "UnknownObject"):
                await service.caller.call(member, path=path, interface=interface)
    with refused(BUS_ERROR + "UnknownInterface"):
        await service.caller.call("GetManagedObjects", path=LEAF, interface=OBJECT_MANAGER)
    with refused(BUS_ERROR + "UnknownMethod"):
        await service.caller.call("Nothing")
    assert list(await service.caller.managed()) == [CID]


# what people see


async def busctl(service: Service, *args: str) -> str:
    argv = ("busctl", f"--address={service.address}", "--no-pager", "--full", *args)
    process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate()
    assert process.returncode == 0, err
    return out.decode()


FLAGS: Final = {"true": "emits-change", "const": "const", "false": "-"}


def shown(interface: Interface) -> set[tuple[str, ...]]:
    """What busctl should show of an interface: name, type, signature, result, flags."""
    methods: set[tuple[str, ...]] = {
        (f".{one.name}", "method", one.takes or "-", one.gives or "-", "-")
        for one in interface.methods.values()
    }
    return methods | {
        (f".{one.name}", "property", one.signature, "", FLAGS[one.emits])
        for one in interface.properties.values()
    }


def rows(text: str) -> set[tuple[str, ...]]:
    """Read busctl's table; values, which may have spaces, are left out."""
    found: set[tuple[str, ...]] = set()
    for line in text.splitlines():
        name, kind, signature, *rest = line.split()
        result = rest[0] if kind == "method" else ""
        found.add((name, kind, signature, result, rest[-1]))
    return found


@pytest.mark.bus
async def test_busctl_shows_it_all(service: Service) -> None:
    tree = await busctl(service, "--list", "tree", SERVICE)
    assert [one for one in tree.split() if "unmanaged" not in one] == [*ABOVE, ROOT, LEAF]
    for path, name in OBJECTS.items():
        text = await busctl(service, "introspect", SERVICE, path, name)
        assert shown(CONTRACT[name]) == {row for row in rows(text) if row[0].startswith(".")}
    for path in ABOVE:
        text = await busctl(service, "introspect", SERVICE, path)
        assert {row[0] for row in rows(text) if "." not in row[0][:1]} >= {PEER, INTROSPECTABLE}


def test_the_annotations_are_read_as_they_are_written() -> None:
    for name in FILES:
        for element in declared(name).findall("property"):
            note = element.find(f"annotation[@name='{EMITS}']")
            written = "true" if note is None else note.attrib["value"]
            assert CONTRACT[name].properties[element.attrib["name"]].emits == written
