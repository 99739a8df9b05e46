# SPDX-License-Identifier: LGPL-2.1-or-later
"""No text that a client writes means more than it says, wherever it is put.

It is refused by an error that names the argument, and nothing is changed; or mount(8) is told what
it would be told of a harmless text, with this one in its place.
"""

from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest

from storaged_conn.bus import wire
from storaged_conn.bus.connection import CallError
from storaged_conn.core.model import MAX_CID_BYTES, Given
from storaged_conn.errors import ERROR_PREFIX, InvalidArgumentError, NotSupportedError, RequestError
from tests.caller import Service, refused, serving, stored
from tests.fuzz.parsers import names, world
from tests.fuzz.world import Told, check_told
from tests.injections import INJECTIONS, encoded
from tests.mounts import table

URIS: Final = {
    "file:///{}": "x",
    "file://{}/x": "localhost",
    "posix+{}:/x": "ext4",
    "posix+ext4:{}": "x",
    "posix+ext4:/dev/{}": "x",
    "posix+cifs://{}/share": "host",
    "posix+cifs://host/{}": "share",
    "posix+fuse.sshfs:user@{}": "host:x",
    "nfs://{}/x": "host",
    "nfs://host:{}/x": "1",
    "nfs://host/{}": "x",
    "simulated:{}": "x",
    "{}": "simulated:x",
}
"""Where a text may stand in a URI, and a harmless one for that place."""

OPTIONS: Final = {
    "mountpoint": ("s", "/srv/root/{}"),
    "lifetime": ("s", "{}"),
    "version": ("s", "{}"),
    "sec": ("s", "{}"),
    "stale": ("s", "{}"),
}
FLAGS: Final = ("{}", "noatime={}", "rsize=1{}", "context={}")
"""Where a text may stand in one of the options of texts, or in a mount option."""

HOSTS: Final = ("nfs://host/x", "posix+ext4:/x", "posix+cifs://host/share", "posix+fuse.sshfs:h:x")

REFUSALS: Final = {f"{ERROR_PREFIX}{one.name}" for one in (InvalidArgumentError, NotSupportedError)}

Request = tuple[str, dict[str, Given]]


def told(request: Request) -> Told | None:
    _, target, _ = world().manager._parse(*request, 0)
    return world().mounted(target)


def shape(found: Told | None) -> object:
    """Give what a text must not change: the type, and the names of the options."""
    return found and (found.fstype, [one.partition("=")[0] for one in found.options])


def refusal(request: Request) -> RequestError | None:
    try:
        told(request)
    except RequestError as error:
        return error
    return None


@pytest.mark.parametrize("place", URIS)
@pytest.mark.parametrize("text", [*INJECTIONS.values(), *map(encoded, INJECTIONS.values())])
def test_a_text_in_a_uri_is_refused_or_is_data(place: str, text: str) -> None:
    request: Request = place.format(text), {}
    if error := refusal(request):
        names(error, "uri")
        return
    check_told(told(request))
    if place not in {"posix+{}:/x", "{}"}:
        assert shape(told(request)) == shape(told((place.format(URIS[place]), {})))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("text", INJECTIONS.values())
def test_a_text_in_an_option_is_refused_or_is_data(name: str, text: str) -> None:
    signature, value = OPTIONS[name]
    for uri in HOSTS:
        request: Request = uri, {name: (signature, value.format(text))}
        if error := refusal(request):
            names(error, "options")
        else:
            check_told(told(request))
            assert name == "mountpoint"
            assert shape(told(request)) == shape(told((uri, {})))


@pytest.mark.parametrize("text", INJECTIONS.values())
def test_a_text_in_a_mount_option_is_refused_or_one_option(text: str) -> None:
    for uri, flag in product(HOSTS, FLAGS):
        given = flag.format(text)
        request: Request = uri, {"mount-options": ("as", [given])}
        if error := refusal(request):
            names(error, "options")
            continue
        found, plain = told(request), told((uri, {}))
        check_told(found)
        assert found
        assert plain
        assert sorted(found.options) == sorted((*plain.options, given))


@pytest.mark.parametrize("text", INJECTIONS.values())
def test_a_text_that_is_no_option_is_refused(text: str) -> None:
    for uri in HOSTS:
        error = refusal((uri, {text: ("s", "x")}))
        assert error
        names(error, "options")


# the real service


def sent(text: str) -> bool:
    """Say whether a text can be sent: the bus takes UTF-8 without NUL, and no more."""
    return "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text)


TEXTS: Final = [one for one in INJECTIONS.values() if sent(one)]


@pytest.mark.bus
async def test_the_service_refuses_by_name_and_changes_nothing(tmp_path: Path) -> None:
    uris = [place.format(text) for place, text in product(URIS, TEXTS)]
    flags = [text for text in TEXTS if refusal(("posix+ext4:/x", flagged(text)))]
    before = table().mounts
    async with serving(tmp_path) as service:
        for uri in (one for one in uris if refusal((one, {}))):
            await be_refused(service, uri, {}, "uri")
        for text in flags:
            options = {"mount-options": wire.Variant("as", [text])}
            await be_refused(service, "posix+ext4:/x", options, "options")
        assert await service.caller.managed() == {}
        await service.daemon.stop()
        assert stored(service) == {}
    assert table().mounts == before


def flagged(text: str) -> dict[str, Given]:
    return {"mount-options": ("as", [text])}


async def be_refused(service: Service, uri: str, options: dict[str, Any], argument: str) -> None:
    with pytest.raises(CallError) as caught:
        await service.caller.call("Manage", "ssa{sv}", uri, "x", options)
    assert caught.value.name in REFUSALS
    names(caught.value, argument)


@pytest.mark.bus
async def test_any_id_is_data(tmp_path: Path) -> None:
    ids = [one for one in TEXTS if one and "/" not in one and len(one.encode()) <= MAX_CID_BYTES]
    async with serving(tmp_path) as service:
        for number, cid in enumerate(ids):
            await service.caller.manage(f"simulated:{number}", cid)
        for cid in set(TEXTS) - set(ids):
            with refused("InvalidArgument") as refusal:
                await service.caller.manage("simulated:x", cid)
            assert refusal.text.startswith("connection_id")
        assert (await service.caller.managed()).keys() == set(ids)
        await service.daemon.stop()
        assert stored(service).keys() == set(ids)
        lines = service.daemon.log.splitlines()
        assert not any(line.startswith("suid") for line in lines)
        assert all(map(str.isprintable, lines))
