# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest

from storaged_conn.core.model import Foreign, Given, Lifetime, Present, Record, Topic
from storaged_conn.core.secret import Secret
from storaged_conn.errors import (
    AlreadyExistsError,
    AuthenticationError,
    BusyError,
    ConnError,
    InvalidArgumentError,
    LimitExceededError,
    NotAuthorizedError,
    NotFoundError,
    NotSupportedError,
    StoreError,
    UnreachableError,
)
from storaged_conn.manager import MAX_OF_USER, Client, Manager
from storaged_conn.sources.base import Look, Source
from storaged_conn.unmanaged import View
from tests.fakes import FakeDriver, FakeStore, News

CLIENT = Client(1000, {lifetime: f"scope of {lifetime}" for lifetime in Lifetime})
ABROAD = Foreign("fake:abroad", Present("fake-abroad", ours=False, mountpoint="/mnt/x"))


class FakeSource(Source):
    def __init__(self) -> None:
        self.watched: set[Topic] = set()

    def start(self, look: Look, resync: object) -> None:
        self.look = look

    def close(self) -> None:
        self.watched.clear()

    def watch(self, topic: Topic) -> None:
        assert topic not in self.watched
        self.watched.add(topic)

    def unwatch(self, topic: Topic) -> None:
        self.watched.remove(topic)


class Stage:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.driver, self.source, self.store = FakeDriver(), FakeSource(), FakeStore()
        self.news = News()
        self.manager = Manager([self.driver], [self.source], self.store, tasks.create_task)
        self.manager.listen(self.news)

    async def manage(self, uri: str, cid: str, **options: Given) -> Record:
        return await self.manager.manage(uri, cid, options, CLIENT)

    def view(self, cid: str) -> View:
        view = self.manager.view(cid)
        assert view
        return view

    def state(self, cid: str) -> str:
        runner = self.view(cid).runner
        return runner.state if runner else ""

    async def until(self, cid: str, state: str) -> None:
        await self.news.until(lambda: self.manager.view(cid) and self.state(cid) == state)

    @property
    def calls(self) -> list[str]:
        return [what for what, _ in self.driver.calls]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with asyncio.TaskGroup() as tasks:
        stage = Stage(tasks)
        stage.manager.start([])
        yield stage
        stage.driver.free.set()
        stage.store.free.set()
        stage.manager.stop()


async def test_manage_returns_when_it_is_durable_and_does_not_wait_for_storage(
    stage: Stage,
) -> None:
    stage.driver.free.clear()
    await stage.manage("fake:a", "c")
    assert stage.store.records["c"] == Record("c", "fake:a", {}, 1000, scope="scope of persistent")
    assert stage.state("c") == "connecting"
    assert "added c" in stage.news.heard


async def test_two_ids_on_one_storage_share_one_connection(stage: Stage) -> None:
    await stage.manage("fake:a", "one")
    await stage.manage("FAKE:A", "two")
    await stage.until("two", "connected")
    assert stage.calls == ["connect"]
    assert stage.view("one").runner is stage.view("two").runner

    await stage.manager.unmanage("one")
    assert stage.state("two") == "connected"
    await stage.manager.unmanage("two")
    await stage.driver.gone("fake:a")
    assert stage.calls == ["connect", "disconnect"]
    assert not stage.source.watched


async def test_two_ids_with_different_secrets_share_one_connection(stage: Stage) -> None:
    stage.driver.failures.append(AuthenticationError("wrong password"))
    await stage.manage("fake:a", "one", password=("ay", b"1"))
    await stage.until("one", "failed")
    await stage.manage("fake:a", "two", password=("ay", b"2"))
    await stage.until("one", "connected")
    assert stage.view("one").runner is stage.view("two").runner
    passwords = [target.secret("password") for target in stage.driver.targets]
    assert passwords == [Secret(b"1"), Secret(b"2")]
    assert stage.store.records["one"].options == {"password": Secret(b"1")}


async def test_after_a_restart_the_secrets_of_the_last_count_again(stage: Stage) -> None:
    kept = [Record(str(n), "fake:a", {"password": Secret(b"%d" % n)}) for n in (2, 3, 1)]
    stage.manager.start(kept)
    await stage.until("1", "connected")
    (target,) = stage.driver.targets
    assert target.secret("password") == Secret(b"1")


async def test_other_options_are_another_connection(stage: Stage) -> None:
    await stage.manage("fake:a", "one", speed=("i", 1))
    await stage.manage("fake:a", "two", speed=("i", 2))
    assert stage.view("one").runner is not stage.view("two").runner


@pytest.mark.parametrize(
    ("uri", "cid", "options", "error", "names"),
    [
        ("fake:a", "", {}, InvalidArgumentError, "connection_id"),
        ("fake:a", "a/b", {}, InvalidArgumentError, "connection_id"),
        ("fake:a", "x" * 256, {}, InvalidArgumentError, "connection_id"),
        ("fake", "c", {}, InvalidArgumentError, "uri"),
        ("fake://me:secret@host/x", "c", {}, InvalidArgumentError, "uri"),
        ("fake:bad", "c", {}, InvalidArgumentError, "uri"),
        ("ftp://host/x", "c", {}, NotSupportedError, "uri"),
        ("fake:a", "c", {"sped": ("x", 1)}, InvalidArgumentError, "sped"),
        ("fake:a", "c", {"speed": ("s", "1")}, InvalidArgumentError, "speed"),
        ("fake:a", "c", {"lifetime": ("s", "long")}, InvalidArgumentError, "lifetime"),
        ("fake:a", "used", {}, AlreadyExistsError, "used"),
    ],
)
async def test_bad_input_is_refused_by_name_and_changes_nothing(
    stage: Stage,
    uri: str,
    cid: str,
    options: Mapping[str, Given],
    error: type[ConnError],
    names: str,
) -> None:
    await stage.manage("fake:b", "used")
    await stage.until("used", "connected")
    with pytest.raises(error, match=names) as caught:
        await stage.manager.manage(uri, cid, options, CLIENT)
    assert "secret" not in str(caught.value)
    assert list(stage.manager.ids()) == ["used"] == list(stage.store.records)
    assert stage.calls == ["connect"]


async def test_a_record_that_cannot_be_kept_changes_nothing(stage: Stage) -> None:
    stage.store.failures.append(StoreError("disk full"))
    with pytest.raises(StoreError):
        await stage.manage("fake:a", "c", mountpoint=("s", "/mnt/a"))
    assert not list(stage.manager.ids())
    assert not stage.calls
    await stage.manage("fake:b", "d", mountpoint=("s", "/mnt/a"))  # the place is free


async def test_a_record_that_cannot_be_forgotten_is_kept(stage: Stage) -> None:
    await stage.manage("fake:a", "c")
    await stage.until("c", "connected")
    stage.store.failures.append(StoreError("disk full"))
    with pytest.raises(StoreError):
        await stage.manager.unmanage("c")
    assert stage.state("c") == "connected"


async def test_unmanaging_the_unknown_is_an_error(stage: Stage) -> None:
    with pytest.raises(NotFoundError):
        await stage.manager.unmanage("c")


async def test_one_of_two_at_once_gets_the_id(stage: Stage) -> None:
    stage.store.free.clear()
    both = asyncio.gather(
        stage.manage("fake:a", "c"), stage.manage("fake:b", "c"), return_exceptions=True
    )
    await asyncio.sleep(0)
    stage.store.free.set()
    first, second = await both
    assert isinstance(first, Record)
    assert isinstance(second, AlreadyExistsError)
    assert stage.store.records["c"].uri == "fake:a"


async def test_unmanage_waits_for_the_manage_before_it(stage: Stage) -> None:
    stage.store.free.clear()
    both = asyncio.gather(stage.manage("fake:a", "c"), stage.manager.unmanage("c"))
    await asyncio.sleep(0)
    stage.store.free.set()
    await both
    assert not list(stage.manager.ids())
    await stage.driver.gone("fake:a")


async def test_a_mount_point_is_for_one_connection(stage: Stage) -> None:
    stage.store.free.clear()
    first = asyncio.ensure_future(stage.manage("fake:a", "c", mountpoint=("s", "/mnt/a")))
    await asyncio.sleep(0)
    with pytest.raises(InvalidArgumentError, match="mountpoint"):
        await stage.manage("fake:b", "d", mountpoint=("s", "/mnt/a"))
    stage.store.free.set()
    await first
    with pytest.raises(InvalidArgumentError, match="mountpoint"):
        await stage.manage("fake:b", "d", mountpoint=("s", "/mnt/a"))
    await stage.manager.unmanage("c")
    await stage.driver.gone("fake:a")
    await stage.manage("fake:b", "d", mountpoint=("s", "/mnt/a"))


async def test_a_mount_point_is_free_as_soon_as_nobody_wants_what_is_there(stage: Stage) -> None:
    place = ("s", "/mnt/a")
    await stage.manage("fake:a", "c", mountpoint=place)
    await stage.until("c", "connected")
    stage.driver.free.clear()
    await stage.manager.unmanage("c")  # begins to disconnect
    await stage.manage("fake:b", "c", mountpoint=place)
    stage.driver.free.set()
    await stage.driver.gone("fake:a")
    await stage.until("c", "connected")
    with pytest.raises(InvalidArgumentError, match="mountpoint"):
        await stage.manage("fake:a", "d", mountpoint=place)  # it did not take the place along


async def test_what_others_connected_is_listed_adopted_and_left_alone(stage: Stage) -> None:
    stage.driver.foreigners.append(ABROAD)
    stage.driver.kernel["fake:abroad"] = ABROAD.present
    stage.manager.look(Topic("mounts", ""), hint=False)
    await stage.news.until(lambda: stage.manager.view("unmanaged/fake-abroad"))

    await stage.manage("fake:abroad", "c")
    await stage.until("c", "connected")
    await stage.news.until(lambda: not stage.manager.view("unmanaged/fake-abroad"))
    assert stage.view("c").present == ABROAD.present

    await stage.manager.unmanage("c")
    await stage.news.until(lambda: stage.manager.view("unmanaged/fake-abroad"))
    assert stage.calls == ["connect"]
    stage.driver.foreigners.clear()
    stage.manager.look(Topic("mounts", ""), hint=False)
    await stage.news.until(lambda: "removed unmanaged/fake-abroad" in stage.news.heard)


async def test_what_is_being_taken_up_is_not_listed_beside_it(stage: Stage) -> None:
    place = Topic("session", "x")
    stage.driver.foreigners.append(replace(ABROAD, place=place))
    stage.driver.kernel["fake:abroad"] = ABROAD.present
    stage.driver.free.clear()
    stage.manager.start([Record("c", "fake:abroad", {"session": "x"}, 7)])
    assert not stage.manager.view("unmanaged/fake-abroad")
    stage.manager.look(Topic("mounts", ""), hint=False)
    await asyncio.sleep(0)
    assert stage.view("c").present is None
    assert not stage.manager.view("unmanaged/fake-abroad")
    stage.driver.free.set()
    await stage.until("c", "connected")
    assert not stage.manager.view("unmanaged/fake-abroad")


async def test_those_that_share_a_session_must_get_along(stage: Stage) -> None:
    session, slow, fast = ("s", "x"), ("x", 1), ("x", 2)
    await stage.manage("fake:a", "a", session=session, speed=slow)
    await stage.manage("fake:b", "b", session=session, speed=slow)
    for gone in ("a", "b"):
        with pytest.raises(InvalidArgumentError, match="speed"):
            await stage.manage("fake:c", "c", session=session, speed=fast)
        await stage.manager.unmanage(gone)
    await stage.manage("fake:c", "c", session=session, speed=fast)


async def test_a_session_is_listed_as_unmanaged_when_the_last_is_gone(stage: Stage) -> None:
    for cid in ("a", "b"):
        await stage.manage(f"fake:{cid}", cid, session=("s", "x"))
        await stage.until(cid, "connected")
    stage.driver.foreigners.append(Foreign("fake:x", Present("fake-x", ours=True)))
    stage.driver.failures += [BusyError("wait"), BusyError("wait")]
    for cid, listed in (("b", ["a"]), ("a", ["unmanaged/fake-x"])):
        await stage.manager.unmanage(cid)
        await stage.news.until(lambda: not stage.driver.running)
        stage.manager.audit()
        await asyncio.sleep(0)
        await stage.news.until(lambda listed=listed: list(stage.manager.ids()) == listed)  # type: ignore[misc]
    stage.driver.foreigners.clear()
    await stage.driver.gone("fake:a")


async def test_what_cannot_be_disconnected_yet_is_listed_as_unmanaged(stage: Stage) -> None:
    await stage.manage("fake:a", "c")
    await stage.until("c", "connected")
    stage.driver.failures.append(BusyError("in use"))
    await stage.manager.unmanage("c")
    await stage.until("unmanaged/fake-a", "disconnecting")
    await stage.news.until(lambda: not stage.manager.view("unmanaged/fake-a"))
    assert stage.calls == ["connect", "disconnect", "disconnect"]


async def test_records_are_taken_up_and_none_is_lost(stage: Stage) -> None:
    stage.manager.start(
        [Record("good", "fake:a", {"speed": 3}), Record("gone", "ftp:x"), Record("also", "ftp:x")]
    )
    await stage.until("good", "connected")
    await stage.until("gone", "failed")
    runner = stage.view("gone").runner
    assert runner is not None
    assert runner.reason == "not-usable"
    assert "ftp" in str(runner.error)
    assert stage.view("also").runner is not runner


async def test_a_record_whose_secrets_cannot_be_decrypted_says_so_and_stays(stage: Stage) -> None:
    sealed = Record("a", "fake:a", sealed={"password": b"0123"})
    stage.store.records["a"] = sealed
    stage.manager.start([sealed])
    await stage.until("a", "failed")
    runner = stage.view("a").runner
    assert runner is not None
    assert runner.reason == "not-usable"
    assert "restore /var/lib/systemd/credential.secret" in str(runner.error)
    assert stage.driver.targets == []
    assert stage.store.records["a"] is sealed
    await stage.manager.unmanage("a")


async def test_news_reach_the_connections_that_they_concern(stage: Stage) -> None:
    stage.driver.failures.append(UnreachableError("not yet"))
    await stage.manage("fake:a", "c")
    await stage.until("c", "waiting")
    assert stage.source.watched == {Topic("fake", "fake:a")}
    stage.source.look(Topic("fake", "fake:b"), hint=True)
    assert stage.state("c") == "waiting"
    stage.source.look(Topic("fake", "fake:a"), hint=True)
    await stage.until("c", "connected")


async def test_after_an_overflow_everything_is_looked_at(stage: Stage) -> None:
    await stage.manage("fake:a", "c")
    await stage.until("c", "connected")
    stage.driver.kernel.clear()
    stage.manager.resync()
    await stage.news.until(lambda: stage.calls == ["connect", "connect"])


async def test_reconnect_tries_at_once_and_knows_only_the_managed(stage: Stage) -> None:
    stage.driver.failures.append(UnreachableError("not yet"))
    await stage.manage("fake:a", "c")
    await stage.until("c", "waiting")
    stage.manager.reconnect("c")
    await stage.until("c", "connected")
    with pytest.raises(NotFoundError):
        stage.manager.reconnect("unmanaged/x")


async def test_validate_says_what_would_stop_it_and_manages_nothing(stage: Stage) -> None:
    assert await stage.manager.validate("fake:A", {}, 0) == {"uri": "fake:a", "ok": True}
    stage.driver.failures.append(UnreachableError("no route; wait"))
    assert await stage.manager.validate("fake:a", {}, 0) == {
        "uri": "fake:a",
        "ok": False,
        "error": "org.storage.Connection.Error.Unreachable",
        "reason": "server-unreachable",
        "message": "no route; wait",
    }
    assert not list(stage.manager.ids())


async def test_discover_is_not_supported_where_there_is_nothing_to_discover(stage: Stage) -> None:
    with pytest.raises(NotSupportedError):
        await stage.manager.discover("fake:a", {}, 0)


# whose it is


async def test_one_user_has_only_so_many_ids_and_who_is_trusted_as_many_as_there_are(
    stage: Stage,
) -> None:
    for number in range(MAX_OF_USER):
        await stage.manage("fake:a", f"c{number}")
    with pytest.raises(LimitExceededError, match=f"you manage {MAX_OF_USER} connections already"):
        await stage.manage("fake:a", "more")
    await stage.manager.manage("fake:a", "other", {}, replace(CLIENT, uid=1001))
    await stage.manager.manage("fake:a", "more", {}, replace(CLIENT, trusted=True))


async def test_an_id_that_has_changed_hands_is_not_ended_for_its_former_owner(
    stage: Stage,
) -> None:
    await stage.manage("fake:a", "a")
    with pytest.raises(NotAuthorizedError, match="'a' is another user's"):
        await stage.manager.unmanage("a", 1001)
    await stage.manager.unmanage("a", CLIENT.uid)


async def test_only_what_root_wants_may_use_the_hosts_own_credentials(stage: Stage) -> None:
    await stage.manager.manage("fake:a", "a", {}, CLIENT)
    await stage.manager.manage("fake:b", "b", {}, replace(CLIENT, uid=0))
    assert [runner.target.trusted for runner in stage.manager._runners.values()] == [False, True]
    assert stage.manager._read(Record("a", "fake:a", owner=0))[1].trusted
    assert not stage.manager._read(Record("a", "fake:a", owner=1000))[1].trusted


async def test_the_session_of_one_user_opens_nothing_for_another(stage: Stage) -> None:
    other = replace(CLIENT, uid=1001)
    given: dict[str, Given] = {"session": ("s", "x"), "password": ("ay", b"secret")}
    await stage.manager.manage("fake:a", "a", given, CLIENT)
    bad: list[dict[str, Given]] = [{}, {"password": ("ay", b"guess")}]
    for wrong in bad:
        with pytest.raises(NotAuthorizedError, match="secrets of another user"):
            await stage.manager.manage("fake:b", "b", {"session": ("s", "x"), **wrong}, other)
    await stage.manager.manage("fake:b", "b", given, other)


async def test_the_secrets_of_one_user_open_nothing_for_another(stage: Stage) -> None:
    other, root = replace(CLIENT, uid=1001), replace(CLIENT, uid=0, trusted=True)
    given: dict[str, Given] = {"password": ("ay", b"secret")}
    await stage.manager.manage("fake:a", "a", given, CLIENT)
    bad: list[dict[str, Given]] = [{}, {"password": ("ay", b"guess")}]
    for wrong in bad:
        with pytest.raises(NotAuthorizedError, match="secrets of another user"):
            await stage.manager.manage("fake:a", "b", wrong, other)
    assert set(stage.store.records) == {"a"}
    await stage.manager.manage("fake:a", "b", given, other)
    await stage.manager.manage("fake:a", "c", {}, root)
