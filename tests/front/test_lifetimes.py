# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path

import pytest

from storaged_conn.bus.connection import BusLostError
from storaged_conn.core.model import Lifetime
from tests.caller import Service, calling, refused, serving, stored
from tests.stores import opened

pytestmark = pytest.mark.bus


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(tmp_path) as service:
        yield service


async def test_what_was_managed_until_its_caller_leaves_ends_then(service: Service) -> None:
    async with calling(service.address) as guest:
        await guest.manage("simulated:a", "a", lifetime="caller")
        await guest.manage("simulated:b", "b", lifetime="caller")
        await guest.manage("simulated:c", "c")
        assert (await service.caller.properties("a"))["Lifetime"] == "caller"
        assert (await service.caller.properties("c"))["Lifetime"] == "persistent"
    await service.caller.hears_removed("a")
    await service.caller.hears_removed("b")
    assert set(await service.caller.listed()) == {"c"}
    await service.daemon.stop()
    assert set(stored(service)) == {"c"}


async def test_another_caller_that_leaves_ends_nothing(service: Service) -> None:
    await service.caller.manage("simulated:a", "own", lifetime="caller")
    async with calling(service.address) as guest:
        await guest.manage("simulated:a", "guest", lifetime="caller")
    await service.caller.hears_removed("guest")
    assert set(await service.caller.listed()) == {"own"}


async def test_who_leaves_before_the_answer_comes_leaves_nothing_behind(service: Service) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            async with calling(service.address) as guest:
                manage = guest.manage("simulated:a", str(number), lifetime="caller")
                tasks.create_task(fails(manage))
                await asyncio.sleep(0)  # it is sent
    await service.caller.manage("simulated:a", "mine")
    await service.caller.manages("mine")
    await service.daemon.stop()
    assert set(stored(service)) == {"mine"}


async def fails(manage: Coroutine[None, None, str]) -> None:
    with pytest.raises(BusLostError):
        await manage


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_restart_does_not_end_what_its_caller_still_wants(
    service: Service, end: str
) -> None:
    async with calling(service.address) as guest:
        await guest.manage("simulated:a", "a", lifetime="caller")
        await getattr(service.daemon, end)()
        await service.daemon.start()
        await service.caller.until("a", State="connected", Lifetime="caller")
    await service.caller.hears_removed("a")
    assert not await service.caller.listed()


async def test_who_left_while_the_service_was_down_is_noticed_at_its_start(
    service: Service,
) -> None:
    async with calling(service.address) as guest:
        await guest.manage("simulated:a", "a", lifetime="caller")
        await service.daemon.kill()
    assert set(stored(service)) == {"a"}
    await service.daemon.start()
    assert not await service.caller.listed()
    await service.daemon.stop()
    assert not stored(service)


async def test_one_match_rule_is_enough_for_all_callers(service: Service) -> None:
    idle = await service.caller.match_rules()
    async with calling(service.address) as guest, calling(service.address) as other:
        await guest.manage("simulated:a", "a", lifetime="caller")
        await guest.manage("simulated:a", "b", lifetime="caller")
        await other.manage("simulated:a", "c", lifetime="caller")
        assert await service.caller.match_rules() == idle + 1
    for cid in ("a", "b", "c"):
        await service.caller.hears_removed(cid)
    assert await service.caller.match_rules() == idle


async def test_runtime_lasts_through_restarts_until_the_next_boot(service: Service) -> None:
    await service.caller.manage("simulated:a", "this boot", lifetime="runtime")
    await service.caller.manage("simulated:a", "for ever", lifetime="persistent")
    await service.daemon.kill()
    await service.daemon.start()
    await service.caller.until("this boot", State="connected", Lifetime="runtime")
    await service.daemon.stop()
    record = stored(service)["this boot"]
    assert record.lifetime is Lifetime.RUNTIME
    async with opened(service.directory / "state" / "connections.db") as store:
        await store.add(replace(record, scope="another boot"))
    await service.daemon.start()
    assert set(await service.caller.listed()) == {"for ever"}
    await service.daemon.stop()
    assert set(stored(service)) == {"for ever"}


async def test_a_caller_of_another_bus_is_not_this_bus_s(service: Service) -> None:
    await service.caller.manage("simulated:a", "a", lifetime="caller")
    await service.daemon.stop()
    record = stored(service)["a"]
    assert record.scope.endswith(f" {service.caller.bus.unique_name}")
    async with opened(service.directory / "state" / "connections.db") as store:
        await store.add(replace(record, scope=f"bus {service.caller.bus.unique_name}"))
    await service.daemon.start()
    assert not await service.caller.listed()


async def test_there_are_no_other_lifetimes(service: Service) -> None:
    with refused("InvalidArgument") as refusal:
        await service.caller.manage("simulated:a", "a", lifetime="session")
    assert "'lifetime'" in refusal.text
    with refused("InvalidArgument") as refusal:
        await service.caller.manage("simulated:a", "a", lifetime=True)
    assert "'lifetime' must be of type s, not b" in refusal.text
    assert not await service.caller.listed()
