# SPDX-License-Identifier: LGPL-2.1-or-later
"""`simulated:NAME`: the whole service without a kernel, for tests, scale runs and benchmarks.

`simulated://HOST:PORT/NAME` needs a server that answers there, and nothing else of it.

The options say how this storage behaves; all times are milliseconds and 0 by default. Nothing here
is random, and nothing outlives the process.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import ClassVar
from urllib.parse import quote, unquote

from storaged_conn.core.model import Absent, Observation, Present, Target, Topic, Value
from storaged_conn.drivers.base import Driver, part
from storaged_conn.drivers.server import read_server
from storaged_conn.errors import (
    AttemptError,
    AuthenticationError,
    BusyError,
    InvalidArgumentError,
    MissingError,
    RefusedError,
    UnreachableError,
)
from storaged_conn.system.sentinel import Address
from storaged_conn.system.servers import Servers

FAILURES: Mapping[str, type[AttemptError]] = {
    error.name: error
    for error in (UnreachableError, MissingError, BusyError, RefusedError, AuthenticationError)
}
"""What `fail-with` may name."""


class SimulatedDriver(Driver):
    """Storage that behaves as its options say.

    Attributes:
        news: is called with the topic when a simulated outage begins or ends.
    """

    options: ClassVar[Mapping[str, str]] = {
        "latency-ms": "x",  # each connect and disconnect takes this long
        "fail-first": "x",  # so many attempts fail
        "fail-with": "s",  # with this error, Unreachable by default
        "busy-first": "x",  # so many disconnects fail
        "outage-after-ms": "x",  # this long after each connect, it is lost
        "outage-ms": "x",  # for this long
        "stall": "b",  # in an outage the kernel keeps it, and the server is silent
        "password": "ay",  # has no effect; it is there so that tests can look where it goes
    }

    def __init__(self, servers: Servers) -> None:
        """A world where nothing is connected yet."""
        self._servers = servers
        self.news: Callable[[Topic], None] = lambda topic: None
        self._up: set[Target] = set()
        self._out: set[Target] = set()
        self._tries: dict[Target, int] = {}
        self._departures: dict[Target, int] = {}
        self._timers: dict[Target, asyncio.TimerHandle] = {}

    def serves(self, scheme: str) -> bool:
        """See Driver."""
        return scheme == "simulated"

    def schemes(self) -> tuple[str, ...]:
        """See Driver."""
        return ("simulated",)

    def parse(self, uri: str, options: Mapping[str, Value]) -> Target:
        """See Driver."""
        rest = uri.partition(":")[2]
        server = read_server(uri) if rest.startswith("//") else None
        name = unquote(rest[2:].partition("/")[2] if server else rest)
        if not name or "/" in name:
            raise InvalidArgumentError(
                "uri: write it as simulated:NAME or simulated://HOST:PORT/NAME"
            )
        if options.get("fail-with", "Unreachable") not in FAILURES:
            names = ", ".join(FAILURES)
            raise InvalidArgumentError(f"options: 'fail-with' must be one of {names}")
        for key, value in options.items():
            if isinstance(value, int) and value < 0:
                raise InvalidArgumentError(f"options: {key!r} must not be negative")
        prefix = f"//{server.text}/" if server else ""
        return Target(f"simulated:{prefix}{quote(name)}", *part(options))

    def topics(self, target: Target) -> frozenset[Topic]:
        """See Driver."""
        server = _server(target)
        own = {Topic("simulated", target.uri)}
        return frozenset(own | {Topic("server", server.text)} if server else own)

    async def observe(self, target: Target) -> Observation:
        """See Driver."""
        server = _server(target)
        if server and self._servers.failure(server) and not target.option("stall"):
            self._up.discard(target)  # it needs a new attempt when the server is back
        return self._present(target) if target in self._up else Absent()

    async def connect(self, target: Target) -> Present:
        """See Driver."""
        server = _server(target)
        if server:
            async with self._servers.reach(server):
                return await self._connect(target)
        return await self._connect(target)

    async def _connect(self, target: Target) -> Present:
        await self._pass_time(target)
        tries = self._tries[target] = self._tries.get(target, 0) + 1
        if tries <= _number(target, "fail-first") or target in self._out:
            failure = FAILURES[str(target.option("fail-with") or "Unreachable")]
            raise failure(f"{target.uri} is simulated to fail; wait, or change its options")
        self._up.add(target)
        after = _number(target, "outage-after-ms")
        if after:
            self._later(target, after, self._begin_outage)
        return self._present(target)

    async def disconnect(self, target: Target, present: Present | None) -> None:
        """See Driver."""
        await self._pass_time(target)
        departures = self._departures[target] = self._departures.get(target, 0) + 1
        if departures <= _number(target, "busy-first"):
            raise BusyError(f"{target.uri} is simulated to be busy; wait, or change its options")
        for known in (self._tries, self._departures):
            known.pop(target, None)
        self._nothing_later(target)
        self._up.discard(target)
        self._out.discard(target)

    async def validate(self, target: Target) -> None:
        """See Driver."""
        server = _server(target)
        if server:
            async with self._servers.reach(server):
                pass
        if _number(target, "fail-first"):
            failure = FAILURES[str(target.option("fail-with") or "Unreachable")]
            raise failure(f"{target.uri} is simulated to fail; change its options")

    def _present(self, target: Target) -> Present:
        name = target.uri.partition(":")[2]
        server = _server(target)
        stalled = target in self._out or bool(server and self._servers.failure(server))
        info: dict[str, Value] = {"name": name, "latencyMs": _number(target, "latency-ms")}
        if server:
            info |= {"hostname": server.host, "port": server.port}
        return Present(f"simulated-{name}", ours=True, responsive=not stalled, info=info)

    async def _pass_time(self, target: Target) -> None:
        if latency := _number(target, "latency-ms"):
            await asyncio.sleep(latency / 1000)

    def _later(self, target: Target, after: int, what: Callable[[Target], None]) -> None:
        self._nothing_later(target)
        loop = asyncio.get_running_loop()
        self._timers[target] = loop.call_later(after / 1000, what, target)

    def _nothing_later(self, target: Target) -> None:
        if timer := self._timers.pop(target, None):
            timer.cancel()

    def _begin_outage(self, target: Target) -> None:
        if target not in self._up:
            return
        self._out.add(target)
        if not target.option("stall"):
            self._up.discard(target)
        self._later(target, _number(target, "outage-ms"), self._end_outage)
        self.news(Topic("simulated", target.uri))

    def _end_outage(self, target: Target) -> None:
        self._out.discard(target)
        self.news(Topic("simulated", target.uri))


def _server(target: Target) -> Address | None:
    authority = target.uri.partition("://")[2].partition("/")[0]
    return Address.read(authority) if authority else None


def _number(target: Target, name: str) -> int:
    value = target.option(name)
    return value if isinstance(value, int) else 0
