# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was to end when the service was killed is ended by the next one."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storaged_conn.core.model import Record
from storaged_conn.core.secret import Secret
from storaged_conn.errors import StoreError
from storaged_conn.leaving import is_note, retire
from tests.caller import Service, calling, serving, stored
from tests.fakes import FakeStore
from tests.mounts import cleaned, make_image, mounts_below, needs_root, tool
from tests.stores import PLAIN, opened, records


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    with cleaned(tmp_path):
        async with serving(tmp_path) as service:
            yield service


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"posix+ext4:{make_image(tmp_path / 'disk.img')}"


async def mounted(service: Service, uri: str, **options: object) -> str:
    await service.caller.manage(uri, "disk", **options)
    return str((await service.caller.until("disk", State="connected"))["MountPoint"])


async def unmanaged_in_use(service: Service, uri: str, place: str) -> None:
    """Unmanage what cannot end yet, and kill the service then."""
    held = os.open(place, os.O_RDONLY)
    try:
        await service.caller.unmanage("disk")
        await service.caller.unmanaged(uri, State="disconnecting", StateReason="busy")
        await service.daemon.kill()
    finally:
        os.close(held)


async def forgotten(service: Service) -> None:
    """See that no note is left when the service has ended what it had to end.

    It tidies up before that, of which no client is told, and the records cannot be read while it
    runs: so it is given more time again and again.
    """
    left: object = None
    for pause in (0.1, 0.5, 2.5, 12.5):
        await asyncio.sleep(pause)
        await service.daemon.stop()
        left = stored(service)
        await service.daemon.start()
        if not left:
            break
    assert not left


async def test_a_note_takes_the_place_of_its_record_and_has_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "store"
    record = Record("c", "fake:a", {"password": Secret(b"canary"), "n": 1}, 7)
    async with opened(path) as store:
        await store.add(PLAIN)
        await store.add(record)
        note = await retire(store, record)
    assert is_note(note)
    assert records(path) == [note, PLAIN]
    assert (note.uri, note.options, note.owner) == ("fake:a", {"n": 1}, 7)


async def test_what_is_replaced_keeps_its_secrets_and_those_of_the_other_go(tmp_path: Path) -> None:
    new = Record("d", "fake:b", {"password": Secret(b"new")})
    async with opened(tmp_path / "store") as store:
        await store.add(Record("c", "fake:a", {"password": Secret(b"canary")}))
        await store.replace("c", new)
    assert records(tmp_path / "store") == [new]
    assert b"canary" not in (tmp_path / "store").read_bytes()


async def test_a_record_that_cannot_be_replaced_stays() -> None:
    store = FakeStore()
    await store.add(PLAIN)
    store.failures.append(StoreError("disk full"))
    with pytest.raises(StoreError):
        await retire(store, PLAIN)
    assert store.records == {"plain": PLAIN}


@needs_root
@pytest.mark.root
@pytest.mark.bus
class TestService:
    async def test_it_is_ended_by_the_next_start(self, service: Service, uri: str) -> None:
        await unmanaged_in_use(service, uri, await mounted(service, uri))
        assert mounts_below(service.directory)
        await service.daemon.start()
        await service.caller.gone(uri)
        assert not mounts_below(service.directory)
        await forgotten(service)

    async def test_where_it_is_gone_already_nothing_is_done(
        self, service: Service, uri: str
    ) -> None:
        place = await mounted(service, uri)
        await unmanaged_in_use(service, uri, place)
        tool("umount", place)
        await service.daemon.start()
        await service.caller.gone(uri)
        await forgotten(service)

    async def test_what_somebody_else_mounted_since_is_left_alone(
        self, service: Service, uri: str
    ) -> None:
        place = await mounted(service, uri)
        await unmanaged_in_use(service, uri, place)
        tool("umount", place)
        other = service.directory / "other"
        other.mkdir()
        tool("mount", uri.partition(":")[2], other)
        await service.daemon.start()
        await service.caller.unmanaged(uri, State="connected", MountPoint=str(other))
        await forgotten(service)
        assert [one.target for one in mounts_below(service.directory)] == [str(other)]

    async def test_what_is_wanted_again_is_not_ended(self, service: Service, uri: str) -> None:
        place = await mounted(service, uri)
        held = os.open(place, os.O_RDONLY)
        try:
            await service.caller.unmanage("disk")
            await service.caller.unmanaged(uri, State="disconnecting", StateReason="busy")
            await service.caller.manage(uri, "again")
            await service.daemon.kill()
            (mount,) = mounts_below(service.directory)
            await service.daemon.start()
            await service.caller.until("again", State="connected")
        finally:
            os.close(held)
        assert mounts_below(service.directory) == [mount]

    async def test_what_was_to_end_with_its_caller_ends_though_the_service_was_down(
        self, service: Service, uri: str
    ) -> None:
        async with calling(service.address) as other:
            await other.manage(uri, "disk", lifetime="caller")
            await other.until("disk", State="connected")
            await service.daemon.kill()
        await service.daemon.start()
        await service.caller.gone(uri)
        assert not mounts_below(service.directory)
        await forgotten(service)
