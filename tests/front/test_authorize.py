# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what: every method there is, by root, an admin and nobody, whatever polkit does."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import pytest

from storaged_conn.bus.wire import Flag, Variant
from storaged_conn.errors import ERROR_PREFIX
from storaged_conn.front.actions import ACTIONS, Action
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
from tests.authority import PolkitD, authority
from tests.caller import Caller, Service, serving, stored
from tests.nobody import NOBODY, Other, other

pytestmark = [
    pytest.mark.bus,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody"),
]

Body = tuple[object, ...]

NOT_AUTHORIZED: Final = ERROR_PREFIX + "NotAuthorized"
INTERACTION: Final = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
PATH: Final = object_path("a")
ADMIN: Final = 1
"""Some user whom every Debian has: dbus-daemon lets in nobody whose groups it cannot look up.
Source: base-passwd, users-and-groups.html, daemon."""

ASKING: Final = Flag.ALLOW_INTERACTIVE_AUTHORIZATION

ARGUMENTS: Final[dict[tuple[str, str], tuple[str, tuple[object, ...]]]] = {
    (MANAGER, "Manage"): ("ssa{sv}", ("simulated:new", "new", {})),
    (MANAGER, "Unmanage"): ("sa{sv}", ("a", {})),
    (MANAGER, "List"): ("", ()),
    (MANAGER, "Validate"): ("sa{sv}", ("simulated://host.example:1/x", {})),
    (MANAGER, "Discover"): ("sa{sv}", ("simulated://[2001:db8::1]:1/x", {})),
    (MANAGER, "GetConnection"): ("s", ("a",)),
    (CONNECTION, "Reconnect"): ("a{sv}", ({},)),
    (CONNECTION, "WaitFor"): ("sta{sv}", ("connected", 1, {})),
    (OBJECT_MANAGER, "GetManagedObjects"): ("", ()),
    (PROPERTIES, "Get"): ("ss", ("", "State")),
    (PROPERTIES, "GetAll"): ("s", ("",)),
    (PROPERTIES, "Set"): ("", ()),  # JSON has no variants
    (INTROSPECTABLE, "Introspect"): ("", ()),
    (PEER, "Ping"): ("", ()),
    (PEER, "GetMachineId"): ("", ()),
}
"""A call of each method that would succeed, or fail for another reason than who calls."""

REFUSALS: Final = {
    "allows": "",
    "denies": NOT_AUTHORIZED,
    "challenges": INTERACTION,
    "is dismissed": NOT_AUTHORIZED,
    "dies": NOT_AUTHORIZED,
    "is absent": NOT_AUTHORIZED,
}

ABOUT: Final = {
    "Manage": ("new", "simulated", ""),
    "Unmanage": ("a", "simulated", ""),
    "Validate": ("", "simulated", "host.example"),
    "Discover": ("", "simulated", "2001:db8::1"),
    "Reconnect": ("a", "simulated", ""),
}
"""What polkit is told of those calls: connection_id, scheme, host."""

GUARDED: Final = sorted(key for key, action in ACTIONS.items() if action)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as service:
        await restore(service.caller)
        yield service


@pytest.fixture
async def nobody(service: Service) -> AsyncIterator[Other]:
    async with other(service.address) as nobody:
        yield nobody


async def restore(root: Caller) -> None:
    """Have root manage `a` and nothing else."""
    managed = await root.managed()
    for cid in managed.keys() - {"a"}:
        await root.unmanage(cid)
    if "a" not in managed:
        await root.manage("simulated:a", "a")
    await root.until("a", State="connected")


async def methods(caller: Caller) -> dict[tuple[str, str], str]:
    """Give every method that introspection shows, with a path that has it."""
    found = {}
    for path in ("/", "/org", "/org/storage", ROOT, PATH):
        (xml,) = await caller.call("Introspect", path=path, interface=INTROSPECTABLE)
        for interface in ET.fromstring(xml).iter("interface"):
            for method in interface.iter("method"):
                found[interface.attrib["name"], method.attrib["name"]] = path
    return found


async def attempt(who: Other, key: tuple[str, str], path: str, flags: int = 0) -> Any:
    signature, body = ARGUMENTS[key]
    return await who.call(path, ".".join(key), signature, *body, flags=flags)


def is_refusal(error: str) -> bool:
    return error in {NOT_AUTHORIZED, INTERACTION}


# the matrix


async def test_the_matrix(service: Service) -> None:
    found = await methods(service.caller)
    assert found.keys() == ARGUMENTS.keys() == ACTIONS.keys()
    uids = {"root": 0, "admin": ADMIN, "nobody": NOBODY}
    async with AsyncExitStack() as stack:
        people = {
            name: await stack.enter_async_context(other(service.address, uid))
            for name, uid in uids.items()
        }
        for does in REFUSALS:
            for (name, who), (key, path) in product(people.items(), found.items()):
                error, text = await attempt_while(service, does, who, key, path)
                expected = REFUSALS[does] if ACTIONS[key] and name != "root" else ""
                case = f"{name} calls {key}, polkitd {does}: {error} {text}"
                assert (error if is_refusal(error) else "") == expected, case
                changes = not expected and key[1] in {"Manage", "Unmanage"}
                if changes:
                    await restore(service.caller)
                else:
                    assert set(await service.caller.managed()) == {"a"}, case


async def attempt_while(
    service: Service, does: str, who: Other, key: tuple[str, str], path: str
) -> Any:
    if does == "is absent":
        return await attempt(who, key, path)
    async with authority(service.address) as polkitd:
        polkitd.does = does
        answer = await attempt(who, key, path)
        if is_refusal(answer[0]):
            assert [question.flags for question in polkitd.asked] == [0]
        return answer


async def test_admins_may_and_nobody_may_not(service: Service, nobody: Other) -> None:
    async with authority(service.address) as polkitd, other(service.address, ADMIN) as admin:
        error, _ = await attempt(admin, (MANAGER, "Validate"), ROOT)
        assert error == NOT_AUTHORIZED
        known = polkitd.asked[-1].subject["name"]
        polkitd.does = lambda sender: "allows" if sender == known else "denies"
        for key in GUARDED:
            path = PATH if key[0] == CONNECTION else ROOT
            assert is_refusal((await attempt(nobody, key, path))[0])
            assert not is_refusal((await attempt(admin, key, path))[0])
            await restore(service.caller)


# what polkit is asked


@pytest.mark.parametrize("key", GUARDED, ids=lambda key: key[1])
@pytest.mark.parametrize("flags", [0, int(ASKING)])
async def test_polkit_is_asked_about_the_caller_and_nobody_else(
    service: Service, nobody: Other, key: tuple[str, str], flags: int
) -> None:
    async with authority(service.address) as polkitd:
        polkitd.does = "challenges"
        error, text = await attempt(nobody, key, PATH if key[0] == CONNECTION else ROOT, flags)
        assert error == (NOT_AUTHORIZED if flags else INTERACTION)
        assert "root" in text
        (question,) = polkitd.asked
    names = await service.caller.bus.ask("ListNames")
    action = Action.UNMANAGE_ANY if key[1] == "Unmanage" else ACTIONS[key]
    assert (question.kind, question.action) == ("system-bus-name", action)
    assert list(question.subject) == ["name"]
    assert question.flags == (1 if flags else 0)
    assert question.cancellation
    details = dict(zip(("connection_id", "scheme", "host"), ABOUT[key[1]], strict=True))
    assert question.details == details | ({"owner": "0"} if key[1] == "Unmanage" else {})
    sender = str(question.subject["name"])
    assert sender in names[0]
    assert await service.caller.bus.ask("GetConnectionUnixUser", "s", sender) == [NOBODY]


async def test_polkit_is_told_nothing_that_looks_strange(
    service: Service,
) -> None:
    async with authority(service.address) as polkitd, other(service.address) as nobody:
        body: Body = ("simulated:x", "a\n\u202eb", {})
        await nobody.call(ROOT, f"{MANAGER}.Manage", "ssa{sv}", *body)
        assert polkitd.asked[0].details["connection_id"] == "a\ufffd\ufffdb"
        bad: list[Body] = [
            ("simulated:x", "a/b", {}),
            ("", "b", {}),
            ("file://me:pw@h/x", "b", {}),
        ]
        for wrong in bad:
            error, _ = await nobody.call(ROOT, f"{MANAGER}.Manage", "ssa{sv}", *wrong)
            assert error == ERROR_PREFIX + "InvalidArgument"
        assert len(polkitd.asked) == 1


# what hangs, and who leaves


@pytest.mark.parametrize("key", GUARDED, ids=lambda key: key[1])
async def test_who_leaves_while_polkit_thinks_changes_nothing(
    service: Service, key: tuple[str, str]
) -> None:
    async with authority(service.address) as polkitd, other(service.address) as nobody:
        polkitd.does = "hangs"
        calling = asyncio.create_task(attempt(nobody, key, PATH if key[0] == CONNECTION else ROOT))
        await polkitd.until(lambda: polkitd.asked)
        nobody.process.kill()
        await calling
        await polkitd.until(lambda: polkitd.cancelled)
        assert polkitd.cancelled == [polkitd.asked[0].cancellation]
        assert set(await service.caller.managed()) == {"a"}
    await service.daemon.stop()
    assert set(stored(service)) == {"a"}


async def test_one_user_has_few_questions_and_one_prompt(service: Service, nobody: Other) -> None:
    async with AsyncExitStack() as stack:
        polkitd = await stack.enter_async_context(authority(service.address))
        polkitd.does = "hangs"
        more = [await stack.enter_async_context(other(service.address)) for _ in range(4)]
        key, tasks = (MANAGER, "Validate"), []
        tasks.append(asyncio.create_task(attempt(more[0], key, ROOT, ASKING)))
        await polkitd.until(lambda: len(polkitd.asked) == 1)
        error, text = await attempt(nobody, key, ROOT, ASKING)
        assert error == ERROR_PREFIX + "LimitExceeded"
        assert "already" in text
        tasks += [asyncio.create_task(attempt(one, key, ROOT)) for one in more[1:]]
        await polkitd.until(lambda: len(polkitd.asked) == 4)
        error, text = await attempt(nobody, key, ROOT)
        assert error == ERROR_PREFIX + "LimitExceeded"
        await service.caller.call("Validate", "sa{sv}", "simulated:x", {})
        for one in more:
            one.process.kill()
        await asyncio.gather(*tasks)
        await polkitd.until(lambda: len(polkitd.cancelled) == 4)
        polkitd.does = "denies"
        assert (await attempt(nobody, key, ROOT))[0] == NOT_AUTHORIZED


# whose it is


async def test_what_is_managed_belongs_to_who_has_managed_it(
    service: Service, nobody: Other
) -> None:
    def actions(polkitd: PolkitD) -> list[tuple[str, str | None]]:
        return [(one.action, one.details.get("owner")) for one in polkitd.asked]

    async with authority(service.address) as polkitd, other(service.address, ADMIN) as admin:
        polkitd.does = "allows"
        body: Body = ("simulated:n", "n", {})
        assert await nobody.call(ROOT, f"{MANAGER}.Manage", "ssa{sv}", *body) == [
            "",
            [object_path("n")],
        ]
        assert (await service.caller.properties("n"))["Owner"] == NOBODY
        for who in (nobody, admin):  # in use is in use, whosever it is
            error, _ = await who.call(ROOT, f"{MANAGER}.Manage", "ssa{sv}", *body)
            assert error == ERROR_PREFIX + "AlreadyExists"
        polkitd.asked.clear()
        polkitd.does = "denies"
        for who in (nobody, admin):
            error, _ = await who.call(ROOT, f"{MANAGER}.Unmanage", "sa{sv}", "n", {})
            assert error == NOT_AUTHORIZED
        owner = str(NOBODY)
        assert actions(polkitd) == [(Action.UNMANAGE, owner), (Action.UNMANAGE_ANY, owner)]
        error, _ = await nobody.call(ROOT, f"{MANAGER}.Unmanage", "sa{sv}", "none", {})
        assert error == ERROR_PREFIX + "NotFound"
        polkitd.does = "allows"
        assert await nobody.call(ROOT, f"{MANAGER}.Unmanage", "sa{sv}", "n", {}) == ["", []]
    assert set(await service.caller.managed()) == {"a"}


async def test_what_root_sees_for_others_is_not_told_in_detail(
    service: Service, nobody: Other
) -> None:
    async with authority(service.address) as polkitd:
        polkitd.does = "allows"
        uri = "file:///no/such/place"
        await nobody.call(ROOT, f"{MANAGER}.Manage", "ssa{sv}", uri, "theirs", {})
        theirs = await service.caller.until("theirs", LastErrorName=f"{ERROR_PREFIX}Missing")
        await service.caller.manage(f"{uri}2", "ours")
        ours = await service.caller.until("ours", LastErrorName=f"{ERROR_PREFIX}Missing")
    assert theirs["LastErrorMessage"] == "not-found; the journal of the host has the details"
    assert "/no/such" in ours["LastErrorMessage"]


async def test_nobody_shares_what_the_secrets_of_another_have_opened(
    service: Service, nobody: Other
) -> None:
    await service.caller.call(
        *("Manage", "ssa{sv}", "simulated:s", "s", {"password": Variant("ay", b"secret")})
    )
    async with authority(service.address) as polkitd:
        polkitd.does = "allows"
        body: Body = ("simulated:s", "mine", {})
        error, text = await nobody.call(ROOT, f"{MANAGER}.Manage", "ssa{sv}", *body)
        assert error == NOT_AUTHORIZED
        assert "secrets of another user" in text
        await service.caller.unmanage("s")
        assert (await nobody.call(ROOT, f"{MANAGER}.Manage", "ssa{sv}", *body))[0] == ""


# who reads


async def test_everybody_may_look(nobody: Other) -> None:
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
