# SPDX-License-Identifier: LGPL-2.1-or-later
"""The set of connections: add, find and remove them, and tell who is listening.

A record is what one client asked for; a runner is one real connection, which the ids of its records
hold together. What the kernel has and no id holds is listed as unmanaged, under a temporary id.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from storaged_conn.core.machine import Machine, State
from storaged_conn.core.model import (
    Given,
    Lifetime,
    Record,
    Target,
    Topic,
    Value,
    check_cid,
    check_uri,
    read_options,
    written,
)
from storaged_conn.drivers.base import Driver
from storaged_conn.drivers.unavailable import UnavailableDriver
from storaged_conn.errors import (
    AlreadyExistsError,
    AttemptError,
    InvalidArgumentError,
    LimitExceededError,
    NotAuthorizedError,
    NotFoundError,
    NotSupportedError,
    RequestError,
)
from storaged_conn.leaving import Leaving, Records, retire
from storaged_conn.runner import Runner, Spawn, Surroundings
from storaged_conn.sources.base import Source
from storaged_conn.unmanaged import Listener, Unmanaged, View

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 32768
"""Ids that may be managed at once: at 900 bytes each, their listing fits what the bus takes."""

MAX_OF_USER: Final = 256
"""Ids that one user may manage at once, unless it is trusted."""

PLACES: Final = frozenset({"mount", "nvme", "session"})
"""The topics of which connections may have to get along with each other; see Driver.clash."""

UNLISTED: Final = frozenset({"directory", "portal", "server", "source"})
"""The topics of which no news makes or ends a connection of the host's: those of what may be
connected. A disk that comes sends ten of them, and for each of the others all are listed."""

COMMON_OPTIONS: Final = {"lifetime": "s"}
"""The options that every scheme has."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks.

    Attributes:
        uid: whose the record will be.
        scopes: what each lifetime would bind it to.
        trusted: it has all the rights of the service anyhow.
    """

    uid: int
    scopes: Mapping[Lifetime, str]
    trusted: bool = False


@dataclass(slots=True)
class _Turns:
    """Lets one operation at a time at each id, in the order in which they came."""

    locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    users: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def take(self, cid: str) -> AsyncIterator[None]:
        self.users[cid] += 1
        try:
            async with self.locks.setdefault(cid, asyncio.Lock()):
                yield
        finally:
            self.users[cid] -= 1
            if not self.users[cid]:
                del self.users[cid], self.locks[cid]


class Manager:
    """All connections of the host, managed or not."""

    def __init__(
        self, drivers: Sequence[Driver], sources: Sequence[Source], records: Records, spawn: Spawn
    ) -> None:
        """Nothing is known and nothing is watched before `start`."""
        self._listeners: list[Listener] = []
        self._drivers = drivers
        self._sources = sources
        self._store = records
        self._awake = asyncio.Event()
        self._awake.set()
        self._surroundings = Surroundings(spawn, self._runner_changed, self._awake)
        self._records: dict[str, Record] = {}
        self._runner_of: dict[str, Runner] = {}
        self._runners: dict[Target, Runner] = {}
        self._concerned: dict[Topic, set[Runner]] = {}
        self._places: dict[Topic, set[Target]] = {}
        self._expected: Counter[Target] = Counter()
        self._unmanaged = Unmanaged(drivers)
        self._leaving = Leaving(records, spawn)
        self._turns = _Turns()

    def listen(self, listener: Listener) -> None:
        """Tell somebody from now on."""
        self._listeners.append(listener)
        self._unmanaged.listeners.append(listener)

    # life

    def start(self, records: Iterable[Record], notes: Iterable[Record] = ()) -> None:
        """Watch the world, take up what was managed before, and end what was to end."""
        for source in self._sources:
            source.start(self.look, self.resync)
        for record in records:
            try:
                driver, target = self._read(record)
            except RequestError as error:  # kept and shown: a record is never lost
                logger.warning("%r cannot be taken up: %s", record.cid, error)
                driver, target = UnavailableDriver(error), Target(record.uri, (("id", record.cid),))
            self._take_up(record, driver, target)
        for note in notes:
            self._end(note)
        self._unmanaged.refresh()

    def stop(self) -> None:
        """Stop watching and trying; nothing is disconnected."""
        for source in self._sources:
            source.close()
        for runner in self._runners.values():
            runner.stop()

    def look(self, topic: Topic, *, hint: bool) -> None:
        """Have the connections that a topic concerns looked at again; see sources.base.Look."""
        for runner in tuple(self._concerned.get(topic, ())):
            runner.look(hint=hint)
        if topic.kind not in UNLISTED:
            self._unmanaged.refresh_soon()

    def resync(self) -> None:
        """Have everything looked at again, and tried, after events may have been lost."""
        self._look_at_all(hint=True)

    def audit(self) -> None:
        """Have everything looked at again, though nothing is known to have happened."""
        self._look_at_all(hint=False)

    def pause(self) -> None:
        """Begin no attempt from now on: the host is about to sleep."""
        self._awake.clear()

    def resume(self) -> None:
        """Go on."""
        self._awake.set()

    # what clients ask for

    async def manage(
        self, uri: str, cid: str, given: Mapping[str, Given], client: Client
    ) -> Record:
        """Keep storage connected from now on; returns when that is durable.

        Args:
            uri: what.
            cid: the client's name for it.
            given: the client's options, unread.
            client: who asks.

        Raises:
            RequestError: nothing was changed.
            StoreError: nothing was changed.
        """
        check_cid(cid)
        driver, target, options = self._parse(uri, given, client.uid)
        lifetime = _read_lifetime(options)
        scope = client.scopes[lifetime]
        record = Record(cid, target.uri, options, client.uid, lifetime, scope)
        async with self._turns.take(cid):
            if cid in self._records:
                raise AlreadyExistsError(f"connection_id {cid!r} is in use; choose another")
            self._admit(driver, target, client)
            with self._reserved(driver, target):
                await self._store.add(record)
            self._take_up(record, driver, target)
        return record

    async def unmanage(self, cid: str, owner: int | None = None) -> None:
        """Forget an id; returns when that is durable. The last one ends the connection.

        Args:
            cid: the id.
            owner: the uid whose it must be; None for anybody's.

        Raises:
            NotFoundError: no such id is managed.
            NotAuthorizedError: it is another user's.
            StoreError: nothing was changed.
        """
        async with self._turns.take(cid):
            if cid not in self._records:
                raise NotFoundError(f"connection_id {cid!r} is not managed; see List")
            if owner not in {None, self._records[cid].owner}:  # it has just changed hands
                raise NotAuthorizedError(f"connection_id {cid!r} is another user's; see Owner")
            note = await retire(self._store, self._records[cid])
            del self._records[cid]
            runner = self._runner_of.pop(cid)
            self._leaving.add(note, runner.target)
            for listener in self._listeners:
                listener.removed(cid)
            runner.release(cid)
            if runner.machine.holders:
                self._leaving.settle(runner.target)

    async def validate(self, uri: str, given: Mapping[str, Given], uid: int) -> Mapping[str, Value]:
        """Find out whether managing this would lead to a connection now, for a user.

        Raises:
            RequestError: the arguments are wrong.
        """
        driver, target, _ = self._parse(uri, given, uid)
        try:
            await driver.validate(target)
        except AttemptError as error:
            verdict = {"error": error.dbus_name, "reason": error.reason, "message": str(error)}
            return {"uri": target.uri, "ok": False, **verdict}
        return {"uri": target.uri, "ok": True}

    async def discover(
        self, uri: str, given: Mapping[str, Given], uid: int
    ) -> list[Mapping[str, Value]]:
        """List what a server offers a user.

        Raises:
            RequestError: the arguments are wrong, or the scheme has nothing to discover.
            AttemptError: the server did not say.
        """
        driver = self._driver(uri)
        options = read_options(given, driver.options, uri)
        return await driver.discover(uri, options, trusted=uid == 0)

    def reconnect(self, cid: str) -> None:
        """Try at once what waits or has failed.

        Raises:
            NotFoundError: no such id is managed.
        """
        runner = self._runner_of.get(cid)
        if runner is None:
            raise NotFoundError(f"connection_id {cid!r} is not managed; see List")
        runner.retry()

    # what there is

    def view(self, cid: str) -> View | None:
        """Look one connection up, managed or not."""
        record = self._records.get(cid)
        if record:
            return View(cid, record, self._runner_of[cid])
        return self._unmanaged.views.get(cid)

    def ids(self) -> Iterator[str]:
        """Give the ids of all connections, managed or not."""
        yield from self._records
        yield from self._unmanaged.views

    def count(self) -> Counter[str]:
        """Count the managed ids by their public state."""
        return Counter(runner.state for runner in self._runner_of.values())

    def of_scope(self, scope: str) -> list[str]:
        """Give the ids whose lifetime is bound to a scope."""
        return [cid for cid, record in self._records.items() if scope and record.scope == scope]

    def option_table(self) -> dict[str, dict[str, str]]:
        """Give the options of each scheme with their D-Bus signatures."""
        return {
            scheme: COMMON_OPTIONS | dict(driver.options)
            for driver in self._drivers
            for scheme in driver.schemes()
        }

    # inside

    def _look_at_all(self, *, hint: bool) -> None:
        for runner in tuple(self._runners.values()):
            runner.look(hint=hint)
        self._unmanaged.refresh_soon()

    def _driver(self, uri: str) -> Driver:
        scheme = check_uri(uri)
        for driver in self._drivers:
            if driver.serves(scheme):
                return driver
        known = ", ".join(scheme for driver in self._drivers for scheme in driver.schemes())
        raise NotSupportedError(f"uri: scheme {scheme!r} is unknown; there are {known}")

    def _parse(
        self, uri: str, given: Mapping[str, Given], uid: int
    ) -> tuple[Driver, Target, dict[str, Value]]:
        driver = self._driver(uri)
        known = COMMON_OPTIONS | dict(driver.options)
        options = read_options(given, known, uri.partition(":")[0])
        own = {name: value for name, value in options.items() if name not in COMMON_OPTIONS}
        _read_lifetime(options)
        target = replace(driver.parse(uri, own), trusted=uid == 0)
        check_uri(target.uri)  # what is encoded is longer, and is what must be read after a restart
        return driver, target, options

    def _read(self, record: Record) -> tuple[Driver, Target]:
        if record.sealed:
            raise NotSupportedError(
                "its secrets are encrypted, and systemd-creds(1) cannot decrypt them here; restore"
                " /var/lib/systemd/credential.secret and restart the service, or unmanage it"
            )
        driver, target, _ = self._parse(record.uri, written(record.options), record.owner)
        return driver, target

    def _admit(self, driver: Driver, target: Target, client: Client) -> None:
        """Refuse one connection too many, and storage that is somebody else's by its secrets."""
        if len(self._records) >= MAX_CONNECTIONS:
            raise LimitExceededError(f"{MAX_CONNECTIONS} connections are managed already")
        if client.trusted:
            return
        own = sum(record.owner == client.uid for record in self._records.values())
        if own >= MAX_OF_USER:
            raise LimitExceededError(f"you manage {MAX_OF_USER} connections already; unmanage some")
        sharing = {one for place in _places(driver, target) for one in self._owners(place)}
        for other in {target} | {one for one in sharing if not driver.clash(target, one)}:
            runner = self._runners.get(other)
            if runner and not runner.admits(target, client.uid):
                raise NotAuthorizedError(
                    "this storage is connected with the secrets of another user; give the same ones"
                )

    @contextmanager
    def _reserved(self, driver: Driver, target: Target) -> Iterator[None]:
        """Keep a mount point for its target while the record is being written."""
        self._claim_places(driver, target)
        self._expected[target] += 1
        try:
            yield
        finally:
            self._expected[target] -= 1
            if not self._expected[target]:
                del self._expected[target]
            self._forget_places(driver, target)

    def _claim_places(self, driver: Driver, target: Target) -> None:
        for owner in {one for place in _places(driver, target) for one in self._owners(place)}:
            if owner != target and self._is_wanted(owner):  # what is ending makes room by itself
                why = driver.clash(target, owner)
                if why:
                    raise InvalidArgumentError(why)
        for place in _places(driver, target):
            self._places.setdefault(place, set()).add(target)

    def _owners(self, place: Topic) -> set[Target]:
        return self._places.get(place, set())

    def _is_wanted(self, target: Target) -> bool:
        runner = self._runners.get(target)
        return bool(self._expected[target] or (runner and runner.machine.holders))

    def _forget_places(self, driver: Driver, target: Target) -> None:
        if target not in self._runners and not self._expected[target]:
            for place in _places(driver, target):
                self._owners(place).discard(target)
                if not self._owners(place):
                    self._places.pop(place, None)

    def _take_up(self, record: Record, driver: Driver, target: Target) -> None:
        runner = self._runners.get(target)
        if runner is None:
            runner = self._add_runner(driver, target, Machine(_jitter()))
        self._records[record.cid] = record
        self._runner_of[record.cid] = runner
        runner.hold(record.cid, target, record.owner)
        self._leaving.settle(target)
        for listener in self._listeners:
            listener.added(record.cid)

    def _end(self, note: Record) -> None:
        try:
            driver, target = self._read(note)
        except RequestError as error:  # kept: another start may know it again
            logger.warning("%s cannot be ended: %s", note.uri, error)
            return
        self._leaving.add(note, target)
        if target in self._runners:
            self._leaving.settle(target)
            return
        machine = Machine(_jitter(), State.DISCONNECTING, ours=True)  # the driver knows better
        self._add_runner(driver, target, machine).end()

    def _add_runner(self, driver: Driver, target: Target, machine: Machine) -> Runner:
        runner = Runner(target, driver, machine, self._surroundings)
        self._runners[target] = runner
        for topic in driver.topics(target):
            if topic.kind in PLACES:
                self._places.setdefault(topic, set()).add(target)
            if topic not in self._concerned:
                for source in self._sources:
                    source.watch(topic)
            self._concerned.setdefault(topic, set()).add(runner)
        return runner

    def _drop_runner(self, runner: Runner) -> None:
        del self._runners[runner.target]
        for topic in runner.driver.topics(runner.target):
            concerned = self._concerned[topic]
            concerned.discard(runner)
            if not concerned:
                del self._concerned[topic]
                for source in self._sources:
                    source.unwatch(topic)
        self._forget_places(runner.driver, runner.target)
        self._leaving.settle(runner.target)

    def _runner_changed(self, runner: Runner) -> None:
        if runner.machine.state is State.ABSENT and self._runners.get(runner.target) is runner:
            self._drop_runner(runner)
        self._unmanaged.claim(runner)
        for cid in runner.machine.holders:
            for listener in self._listeners:
                listener.changed(cid)


def _places(driver: Driver, target: Target) -> list[Topic]:
    return [topic for topic in driver.topics(target) if topic.kind in PLACES]


def _jitter() -> float:
    return random.random()  # noqa: S311  # spreads waits, keeps no secret


def _read_lifetime(options: Mapping[str, Value]) -> Lifetime:
    given = options.get("lifetime", Lifetime.PERSISTENT)
    try:
        return Lifetime(str(given))
    except ValueError:
        known = ", ".join(Lifetime)
        raise InvalidArgumentError(f"options: 'lifetime' must be one of {known}") from None
