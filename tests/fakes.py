# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stand-ins for what the runner and the manager lean on: a driver with its kernel, and a store."""

import asyncio
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from typing import ClassVar

from storaged_conn.core.model import (
    Absent,
    Foreign,
    Observation,
    Present,
    Record,
    Target,
    Topic,
    Value,
)
from storaged_conn.drivers.base import Driver, part
from storaged_conn.errors import InvalidArgumentError


class FakeDriver(Driver):
    """`fake:NAME`: connects at once, unless it is held, or told what to raise."""

    options: ClassVar[Mapping[str, str]] = {
        "mountpoint": "s",
        "speed": "x",
        "password": "ay",
        "session": "s",  # those with the same share it, if they agree on the speed
    }

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.targets: list[Target] = []
        self.kernel: dict[str, Present] = {}
        self.foreigners: list[Foreign] = []
        self.failures: deque[Exception] = deque()
        self.seen: deque[Observation | Exception] = deque()
        self.free = asyncio.Event()
        self.free.set()
        self.running: set[str] = set()
        self.ended = asyncio.Event()

    def serves(self, scheme: str) -> bool:
        return scheme == "fake"

    def schemes(self) -> tuple[str, ...]:
        return ("fake",)

    def parse(self, uri: str, options: Mapping[str, Value]) -> Target:
        if uri.endswith("bad"):
            raise InvalidArgumentError("uri: bad")
        return Target(uri.lower(), *part(options))

    def topics(self, target: Target) -> frozenset[Topic]:
        place = target.option("mountpoint")
        own, session = {Topic("fake", target.uri)}, target.option("session")
        own |= {Topic("session", str(session))} if session else set()
        return frozenset(own | {Topic("mount", str(place))} if place else own)

    def clash(self, target: Target, other: Target) -> str:
        if not target.option("session"):
            return super().clash(target, other)
        return "" if target.option("speed") == other.option("speed") else "options: 'speed'"

    async def observe(self, target: Target) -> Observation:
        await self.free.wait()
        if self.seen:
            seen = self.seen.popleft()
            if isinstance(seen, Exception):
                raise seen
            return seen
        return self.kernel.get(target.uri, Absent())

    async def connect(self, target: Target) -> Present:
        await self._work("connect", target)
        name = target.option("session") or target.uri[5:]
        return self.kernel.setdefault(target.uri, Present(f"fake-{name}", ours=True))

    async def disconnect(self, target: Target, present: Present | None) -> None:
        await self._work("disconnect", target)
        self.kernel.pop(target.uri, None)
        self.ended.set()

    async def gone(self, uri: str) -> None:
        """Return when the kernel does not have it (any more)."""
        async with asyncio.timeout(20):
            while uri in self.kernel or uri in self.running:
                self.ended.clear()
                await self.ended.wait()

    async def validate(self, target: Target) -> None:
        await self._work("validate", target)

    def foreign(self, known: Container[str] = ()) -> Iterable[Foreign]:
        return self.foreigners

    async def _work(self, what: str, target: Target) -> None:
        assert target.uri not in self.running, "two operations on one real connection"
        self.calls.append((what, target.uri))
        self.targets.append(target)
        self.running.add(target.uri)
        try:
            await self.free.wait()
            if self.failures:
                raise self.failures.popleft()
        finally:
            self.running.discard(target.uri)


class FakeStore:
    """Keeps records in memory; slow while it is held, and failing when told so."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.failures: deque[Exception] = deque()
        self.free = asyncio.Event()
        self.free.set()

    async def add(self, record: Record) -> None:
        await self._write()
        self.records[record.cid] = record

    async def remove(self, cid: str) -> None:
        await self._write()
        self.records.pop(cid, None)

    async def replace(self, cid: str, record: Record) -> None:
        await self._write()
        self.records.pop(cid, None)
        self.records[record.cid] = record

    async def _write(self) -> None:
        await self.free.wait()
        if self.failures:
            raise self.failures.popleft()


class News:
    """Remembers what it was told, and lets a test wait for what it wants to see."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._news = asyncio.Event()

    def added(self, cid: str) -> None:
        self._hear(f"added {cid}")

    def changed(self, cid: str) -> None:
        self._hear(f"changed {cid}")

    def removed(self, cid: str) -> None:
        self._hear(f"removed {cid}")

    def poke(self, _: object = None) -> None:
        self._hear("poked")

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when a condition holds, looking again whenever something was told."""
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def _hear(self, what: str) -> None:
        self.heard.append(what)
        self._news.set()
