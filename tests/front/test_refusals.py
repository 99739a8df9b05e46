# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bad input is refused by an error that names the argument, and changes nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storaged_conn.bus.wire import Variant
from storaged_conn.core.model import MAX_CID_BYTES, MAX_OPTIONS, MAX_URI_BYTES
from storaged_conn.names import CONNECTION, object_path
from tests.caller import Service, refused, serving

pytestmark = pytest.mark.bus

GOOD = "simulated:x"
YES = Variant("b", value=True)
INVALID = "InvalidArgument"

# refused, the error's name, what its text has
URIS = [
    ("", INVALID, "uri has no scheme"),
    ("/srv", INVALID, "uri has no scheme"),
    (":x", INVALID, "uri has no scheme"),
    ("simulated:", INVALID, "uri has no scheme"),
    ("simulated:a/b", INVALID, "uri: write it as simulated:NAME"),
    ("file://me:secret@host/srv", INVALID, "uri contains a user"),
    ("simulated:" + "x" * MAX_URI_BYTES, INVALID, "uri is longer than"),
    ("simulated:é" + "é" * (MAX_URI_BYTES // 2), INVALID, "uri is longer"),
    ("simulated:a\nb", INVALID, "uri contains an unprintable"),
    ("simulated:a\u202eb", INVALID, "uri contains an unprintable"),
    ("martian:x", "NotSupported", "uri: scheme 'martian' is unknown"),
    ("file://", INVALID, "uri"),
    ("file:relative", INVALID, "uri"),
]

CIDS = [
    ("a/b", INVALID, "connection_id contains '/'"),
    ("", INVALID, "connection_id is empty"),
    ("x" * (MAX_CID_BYTES + 1), INVALID, "connection_id is longer"),
    ("é" * 128, INVALID, "connection_id is longer than 255 bytes"),
    ("taken", "AlreadyExists", "connection_id 'taken' is in use"),
]

MANY = {f"option {number}": YES for number in range(MAX_OPTIONS + 1)}
OPTIONS: list[tuple[dict[str, object], str]] = [
    ({"nonsense": YES}, "'nonsense' is unknown to"),
    ({"": Variant("s", "")}, "'' is unknown to"),
    ({"Lifetime": Variant("s", "runtime")}, "'Lifetime' is unknown to"),
    ({"lifetime": Variant("u", 5)}, "'lifetime' must be of type s, not u"),
    ({"lifetime": Variant("v", Variant("s", ""))}, "type s, not v"),
    ({"lifetime": Variant("as", ["runtime"])}, "type s, not as"),
    ({"lifetime": Variant("s", "ever")}, "'lifetime' must be one of"),
    ({"stall": Variant("i", 1)}, "'stall' must be of type b, not i"),
    ({"latency-ms": YES}, "type x, not b"),
    ({"latency-ms": Variant("d", 1.0)}, "type x, not d"),
    ({"latency-ms": Variant("t", 2**63)}, "type x, not t"),
    ({"latency-ms": Variant("i", -1)}, "'latency-ms' must not be neg"),
    ({"latency-ms": Variant("a{sv}", {})}, "type x, not a{sv}"),
    ({"fail-with": Variant("s", "Bug")}, "'fail-with' must be one of"),
    (MANY, f"more than {MAX_OPTIONS}"),
]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as service:
        await service.caller.manage("simulated:taken", "taken")
        yield service
        assert list(await service.caller.managed()) == ["taken"]
        assert "defect" not in service.daemon.log


async def test_a_bad_uri_is_refused_by_name(service: Service) -> None:
    for uri, name, text in URIS:
        for member, body in (
            ("Manage", ("ssa{sv}", uri, "new", {})),
            ("Validate", ("sa{sv}", uri, {})),
        ):
            with refused(name) as refusal:
                await service.caller.call(member, *body)
            assert text in refusal.text
            assert "secret" not in refusal.text


async def test_a_bad_id_is_refused_by_name(service: Service) -> None:
    for cid, name, text in CIDS:
        with refused(name) as refusal:
            await service.caller.call("Manage", "ssa{sv}", GOOD, cid, {})
        assert text in refusal.text


async def test_a_bad_option_is_refused_by_name(service: Service) -> None:
    for options, text in OPTIONS:
        for member, body in (
            ("Manage", ("ssa{sv}", GOOD, "new", options)),
            ("Validate", ("sa{sv}", GOOD, options)),
        ):
            with refused(INVALID) as refusal:
                await service.caller.call(member, *body)
            assert "options: " in refusal.text
            assert text in refusal.text


async def test_an_id_that_is_not_known_is_refused_by_name(service: Service) -> None:
    for cid in ("", "no", "a/b", "unmanaged/no", "x" * 4000, "\u202e"):
        for member, body in (("Unmanage", ("sa{sv}", cid, {})), ("GetConnection", ("s", cid))):
            with refused("NotFound") as refusal:
                await service.caller.call(member, *body)
            assert f"connection_id {cid!r} is not" in refusal.text


async def test_methods_without_options_refuse_all_by_name(service: Service) -> None:
    options = {"force": YES}
    here = {"path": object_path("taken"), "interface": CONNECTION}
    for member, body, where in (
        ("Unmanage", ("sa{sv}", "taken", options), {}),
        ("Reconnect", ("a{sv}", options), here),
        ("WaitFor", ("sta{sv}", "connected", 0, options), here),
    ):
        with refused(INVALID) as refusal:
            await service.caller.call(member, *body, **where)
        assert "options: 'force' is unknown" in refusal.text


async def test_arguments_of_other_types_are_refused_with_those_that_are_taken(
    service: Service,
) -> None:
    for member, body, takes in (
        ("Manage", ("ss", GOOD, "new"), "ssa{sv}"),
        ("Manage", ("ssa{ss}", GOOD, "new", {}), "ssa{sv}"),
        ("Unmanage", ("s", "taken"), "sa{sv}"),
        ("List", ("s", ""), ""),
        ("GetConnection", ("o", "/"), "s"),
    ):
        with refused("org.freedesktop.DBus.Error.InvalidArgs") as refusal:
            await service.caller.call(member, *body)
        assert refusal.text == f"{member} takes ({takes}), not ({body[0]})"


async def test_any_good_id_is_taken(service: Service) -> None:
    cids = ["é", "1st", "a.b c", "-", "_", "a_b", "\n", "x" * MAX_CID_BYTES, "é" * 127, "%2f", "\\"]
    for cid in cids:
        path = await service.caller.manage(f"simulated:{len(cid)}", cid)
        assert await service.caller.call("GetConnection", "s", cid) == [path]
    assert [*await service.caller.managed()] == ["taken", *cids]
    for cid in cids:
        await service.caller.unmanage(cid)
