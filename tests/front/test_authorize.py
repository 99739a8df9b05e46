# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from storaged_conn.errors import ERROR_PREFIX
from storaged_conn.front.authorize import ACCESS, Access
from storaged_conn.names import (
    CONNECTION,
    INTROSPECTABLE,
    MANAGER,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
    ROOT,
    object_path,
)
from tests.caller import Service, serving, stored
from tests.live import DEADLINE

pytestmark = [
    pytest.mark.bus,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody"),
]

NOT_AUTHORIZED = ERROR_PREFIX + "NotAuthorized"
PATH = object_path("a")


class Nobody:
    """A caller with the uid of nobody; see tests/nobody.py."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def call(self, path: str, method: str, signature: str = "", *body: object) -> Any:
        """Give the name of the error, and the result or the text of the error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        interface, _, member = method.rpartition(".")
        line = json.dumps([path, interface, member, signature, body])
        self._process.stdin.write(line.encode() + b"\n")
        async with asyncio.timeout(DEADLINE):
            return json.loads(await self._process.stdout.readline())


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as service:
        await service.caller.manage("simulated:a", "a")
        await service.caller.wait_for("a", "connected")
        yield service


@pytest.fixture
async def nobody(service: Service) -> AsyncIterator[Nobody]:
    argv = (sys.executable, "-m", "tests.nobody", service.address)
    top = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(*argv, cwd=top, stdin=PIPE, stdout=PIPE)
    try:
        yield Nobody(process)
    finally:
        await process.communicate(b"")  # which ends it


async def test_everybody_may_look(nobody: Nobody) -> None:
    error, (listed,) = await nobody.call(ROOT, f"{MANAGER}.List")
    assert (error, set(listed)) == ("", {"a"})
    error, (found,) = await nobody.call(ROOT, f"{OBJECT_MANAGER}.GetManagedObjects")
    assert (error, set(found)) == ("", {PATH})
    assert await nobody.call(ROOT, f"{MANAGER}.GetConnection", "s", "a") == ["", [PATH]]
    error, (all_of_it,) = await nobody.call(PATH, f"{PROPERTIES}.GetAll", "s", CONNECTION)
    assert (error, all_of_it) == ("", found[PATH][CONNECTION])
    one = await nobody.call(PATH, f"{PROPERTIES}.Get", "ss", CONNECTION, "State")
    assert one == ["", ["connected"]]
    wait = await nobody.call(PATH, f"{CONNECTION}.WaitFor", "sta{sv}", "connected", 0, {})
    assert wait == ["", ["connected"]]
    for path in (ROOT, PATH):
        error, (xml,) = await nobody.call(path, f"{INTROSPECTABLE}.Introspect")
        assert (error, xml[:9]) == ("", "<!DOCTYPE")
        assert await nobody.call(path, f"{PEER}.Ping") == ["", []]


@pytest.mark.parametrize(
    ("path", "method", "signature", "body"),
    [
        (ROOT, f"{MANAGER}.Manage", "ssa{sv}", ("simulated:b", "b", {})),
        (ROOT, f"{MANAGER}.Unmanage", "sa{sv}", ("a", {})),
        (ROOT, f"{MANAGER}.Validate", "sa{sv}", ("simulated:b", {})),
        (ROOT, f"{MANAGER}.Discover", "sa{sv}", ("simulated:b", {})),
        (PATH, f"{CONNECTION}.Reconnect", "a{sv}", ({},)),
    ],
)
async def test_nobody_else_may_change_anything(
    service: Service, nobody: Nobody, path: str, method: str, signature: str, body: tuple[object]
) -> None:
    before = await service.caller.managed()
    member = method.rpartition(".")[2]
    answer = [NOT_AUTHORIZED, f"{member} is for root; call it as root, such as by sudo"]
    assert await nobody.call(path, method, signature, *body) == answer
    # refused before it is looked at, so that nothing can be learned from how it is refused
    for wrong, arguments in (("", ()), ("s", ("a/b",)), (signature, ["a/b", "", {}][-len(body) :])):
        assert await nobody.call(path, method, wrong, *arguments) == answer
    assert await service.caller.managed() == before
    await service.daemon.stop()
    assert set(stored(service)) == {"a"}


async def test_every_method_that_there_is_is_for_everybody_or_refused(nobody: Nobody) -> None:
    seen = set()
    for path in ("/", "/org", "/org/storage", ROOT, PATH):
        error, (xml,) = await nobody.call(path, f"{INTROSPECTABLE}.Introspect")
        assert not error
        for interface, method, takes in methods(xml):
            seen.add((interface, method))
            wrong = ("s", "x") if not takes else ("",)  # is it refused before that is looked at?
            error, text = await nobody.call(path, f"{interface}.{method}", *wrong)
            if ACCESS[interface, method] is Access.READ:
                assert error == "org.freedesktop.DBus.Error.InvalidArgs", text
            else:
                assert error == NOT_AUTHORIZED, text
    assert seen == set(ACCESS)


def methods(xml: str) -> Iterator[tuple[str, str, bool]]:
    """Give each method in introspection data, and whether it takes arguments."""
    for interface in ET.fromstring(xml).iter("interface"):
        for method in interface.iter("method"):
            takes = [arg for arg in method.iter("arg") if arg.get("direction") != "out"]
            yield interface.attrib["name"], method.attrib["name"], bool(takes)
