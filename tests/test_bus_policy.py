# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus policy as the buses themselves apply it, to root and to nobody."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Final

import pytest

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus, CallError
from storaged_conn.bus.wire import Field, Kind, Message
from storaged_conn.names import (
    CONNECTION,
    DBUS,
    DBUS_PATH,
    INTROSPECTABLE,
    MANAGER,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
    ROOT,
    SERVICE,
)
from tests.faces import broker_bus, daemon_bus
from tests.live import DEADLINE

pytestmark = [pytest.mark.bus, pytest.mark.root]

DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
NOBODY: Final = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture(scope="module", params=["dbus-daemon", "dbus-broker"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("needs root to be root and nobody on one bus")
    with {"dbus-daemon": daemon_bus, "dbus-broker": broker_bus}[request.param]() as address:
        yield address


async def connect(address: str) -> Bus:
    return await Bus.open(address, max_message=2**20)


@pytest.fixture
async def service(address: str) -> AsyncIterator[Bus]:
    """Owns the name as root, and answers every call with the name of its method."""
    bus = await connect(address)

    def answer(call: Message) -> None:
        name = f"{call.text(Field.INTERFACE)}.{call.text(Field.MEMBER)}"
        bus.reply(call, "s", wire.marshal("s", [name]))

    with closing(bus):
        bus.on_call = answer
        assert await bus.ask("RequestName", "su", SERVICE, 0) == [1]
        yield bus


async def call(
    address: str, method: str, *arguments: str, service: str = SERVICE, path: str = ROOT
) -> tuple[int, str]:
    """Call a method as nobody; returns the exit status of gdbus and what it printed."""
    argv = [*NOBODY, "gdbus", "call", "--address", address, "--dest", service]
    argv += ["--object-path", path, "--method", method, *arguments]
    result = await asyncio.to_thread(
        subprocess.run, argv, capture_output=True, text=True, timeout=DEADLINE
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize(
    "method",
    [
        f"{MANAGER}.Manage",
        f"{MANAGER}.Later",
        f"{CONNECTION}.Reconnect",
        f"{PROPERTIES}.Get",
        f"{PROPERTIES}.GetAll",
        f"{OBJECT_MANAGER}.GetManagedObjects",
        f"{INTROSPECTABLE}.Introspect",
        f"{PEER}.Ping",
    ],
)
async def test_anybody_may_call_what_the_service_has(address: str, method: str) -> None:
    assert await call(address, method) == (0, f"('{method}',)\n")


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize(
    "method",
    [f"{PROPERTIES}.Set", f"{PROPERTIES}.Later", f"{SERVICE}.Manager2.Manage", "x.y.Z"],
)
async def test_the_bus_refuses_what_the_service_does_not_have(address: str, method: str) -> None:
    status, text = await call(address, method)
    assert status != 0
    assert DENIED in text


@pytest.mark.usefixtures("service")
async def test_nobody_sets_a_property_not_even_root(address: str) -> None:
    with closing(await connect(address)) as root, pytest.raises(CallError) as caught:
        await root.call((SERVICE, ROOT, PROPERTIES, "Set"), timeout=DEADLINE)
    assert caught.value.name == DENIED


@pytest.mark.usefixtures("service")
async def test_the_bus_refuses_a_call_without_an_interface(address: str) -> None:
    with closing(await connect(address)) as root:
        fields: dict[int, str] = {Field.PATH: ROOT, Field.DESTINATION: SERVICE}
        serial = root.send(Message(Kind.CALL, fields=fields | {Field.MEMBER: "Manage"}))
        root._pending[serial] = asyncio.get_running_loop().create_future()
        reply = await asyncio.wait_for(root._pending[serial], DEADLINE)
    assert reply.text(Field.ERROR_NAME) == DENIED


async def test_only_root_owns_the_name(address: str) -> None:
    request = (f"{DBUS}.RequestName", SERVICE, "0")
    status, text = await call(address, *request, service=DBUS, path=DBUS_PATH)
    assert status != 0
    assert DENIED in text


async def test_signals_of_others_still_reach_the_service(address: str, service: Bus) -> None:
    heard = asyncio.get_running_loop().create_future()

    def hear(signal: Message) -> None:
        if signal.text(Field.MEMBER) == "Hint":
            heard.set_result(signal.text(Field.SENDER))

    service.listen(hear)
    await service.ask("AddMatch", "s", "type='signal',member='Hint'")
    with closing(await connect(address)) as other:
        other.signal("/x", "x.y", "Hint", "", b"")
        assert await asyncio.wait_for(heard, DEADLINE) == other.unique_name
