# SPDX-License-Identifier: LGPL-2.1-or-later
"""Knows whether one server answers, by an idle TCP connection that the kernel watches.

The problem: a mount or a session on a server that dies silently says nothing until somebody uses
it, and then blocks. The naive way, asking every server every few seconds, costs work for ever and
still learns of everything late.

The way here: one connection per server and port, a *sentinel*, shared by all that need the server.
The kernel's keepalive probes it (tcp(7)), so an idle and healthy server costs this process no
system call, and silence is an event after `Keepalive` seconds, an exit of the server's process at
once. When the sentinel is lost, it is connected anew: at once, after that with a bounded backoff,
and at once after every change of the network that changes the way to the server.

What it does not say: that the service behind the port is healthy. A server may close what is idle
(knfsd after 6 minutes, LIO after 15 s without a login): that is no loss, but a reason to connect
again at once; only if that fails, the server is down.
"""

import asyncio
import errno
import socket
from asyncio.staggered import staggered_race
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Protocol

from storaged_conn.core.backoff import Allowance, spread
from storaged_conn.errors import (
    AttemptError,
    NameResolutionError,
    NoAddressError,
    NoNetworkError,
    ServerRefusedError,
    TemporaryError,
    UnreachableError,
)
from storaged_conn.system.resolve import resolve
from storaged_conn.system.routes import Route, Routes

PATIENCE: Final = 1.0
"""Seconds without an answer after which a server counts as down, while the attempt goes on: the
kernel's first SYN retry comes after one (RFC 6298 section 2)."""

ATTEMPT: Final = 120.0
"""Seconds of one attempt where the kernel sends a SYN every second for us."""

STAGGER: Final = 0.25
"""Seconds before the next address is tried beside the first. Source: RFC 8305 section 5."""

FIRST_RETRY: Final = 0.05
LONGEST_RETRY: Final = 0.9
"""Seconds between attempts at a server that refuses: its return must show within 1 s."""

SHORT_LIFE: Final = 1.0
"""Seconds: a server that closes sooner than this is not asked again without a pause."""

NO_WAY: Final = 30.0
"""Seconds between looks while there is no way to the server; events tell of one sooner."""

TCP_RTO_MAX_MS: Final = 44
SYN_EVERY_MS: Final = 1000
SYN_COUNT: Final = 127
"""Source: include/uapi/linux/tcp.h since Linux 6.15: the kernel itself tries once a second, up to
127 times (tcp(7), TCP_SYNCNT). Older kernels refuse it, and attempts are made anew each second."""


class Timing(Protocol):
    """How soon silence is noticed, in whole seconds; see config.Keepalive."""

    @property
    def idle(self) -> int:
        """Before the first probe."""

    @property
    def interval(self) -> int:
        """Between probes."""

    @property
    def count(self) -> int:
        """Probes without an answer."""


class Address(NamedTuple):
    """A server and port, as in a URI."""

    host: str
    port: int

    @classmethod
    def read(cls, text: str) -> "Address":
        """Read what `text` wrote."""
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))

    @property
    def text(self) -> str:
        """Write it as a URI does."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Sentinel:
    """One server and the connection that watches it.

    Attributes:
        address: which server.
        error: why it is down, or None.
        answers_at: the address at which it answers, or did last.
        known: set as soon as there is a first verdict.
    """

    def __init__(
        self,
        address: Address,
        routes: Routes,
        timing: Timing,
        changed: Callable[["Sentinel"], None],
    ) -> None:
        """Nothing happens before `live` runs."""
        self.address = address
        self.error: AttemptError | None = None
        self.answers_at = ""
        self.known = asyncio.Event()
        self._routes = routes
        self._timing = timing
        self._changed = changed
        self._wait: asyncio.Timeout | None = None
        self._ended: asyncio.Future[None] | None = None
        self._addresses: list[str] = []
        self._ways: list[Route | str] = []
        self._allowance = Allowance()
        self._kicked = False
        self._jitter = (hash(address) % 1000) / 1000

    def check(self) -> None:
        """Raise why it is down, if it is."""
        if self.error:
            raise type(self.error)(str(self.error))

    async def live(self) -> None:
        """Keep a connection, for ever."""
        failures = 0
        while True:
            sentinel = await self._connect()
            if sentinel:
                self._publish(None)
                failures = failures + 1 if await self._hold(sentinel) < SHORT_LIFE else 0
            else:
                failures += 1
            # the end of a connection that worked is a reason to make the next one at once
            if not self._kicked and failures > bool(sentinel):
                await self._pause(failures)
            self._kicked = False

    def recheck(self) -> None:
        """Compare the way to the server with the one before."""
        ways = [self._way(one) for one in self._addresses]
        changed, self._ways = ways != self._ways, ways
        there_is_one = changed and any(isinstance(way, Route) for way in ways)
        if self._ended and changed:
            if isinstance(ways[self._addresses.index(self.answers_at)], str):
                self._publish(self._why(self.answers_at))
            self._end()  # it may lead nowhere now: connect anew
        elif there_is_one or isinstance(self.error, NameResolutionError):
            self.kick()

    def hear_of(self, address: str) -> None:
        """Try at once if this is the server, or the way to it."""
        gateways = [way.gateway for way in self._ways if isinstance(way, Route)]
        if self.error and address in (*self._addresses, *gateways):
            self.kick()

    def kick(self) -> None:
        """End the pause, or the attempt that is stuck in the kernel's backoff, for a new one."""
        now = asyncio.get_running_loop().time()
        if self._wait and not self._wait.expired() and not self._allowance.take(now):
            self._kicked = True
            self._wait.reschedule(now)
            self._wait = None

    async def _connect(self) -> socket.socket | None:
        """Make one attempt; a kick ends it early."""
        loop = asyncio.get_running_loop()
        verdict = loop.call_later(PATIENCE, self._publish, self._silent())
        try:
            async with asyncio.timeout(ATTEMPT) as self._wait:
                self._addresses = await resolve(self.address.host)
                return await self._dial_all()
        except TimeoutError:
            return None
        except AttemptError as error:
            self._publish(error)
            return None
        finally:
            self._wait = None
            verdict.cancel()

    async def _dial_all(self) -> socket.socket:
        self._ways = [self._way(one) for one in self._addresses]
        usable = [
            one
            for one, way in zip(self._addresses, self._ways, strict=True)
            if isinstance(way, Route)
        ]
        if not usable:
            raise self._why(self._addresses[0])
        attempts = [partial(self._dial, one) for one in usable]
        winner, index, failures = await staggered_race(attempts, STAGGER)
        if not isinstance(winner, socket.socket) or index is None:
            known = [one for one in failures if isinstance(one, AttemptError)]
            raise next(iter(known), self._silent())
        self.answers_at = usable[index]
        return winner

    async def _dial(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sentinel = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            patience = self._prepare(sentinel)
            async with asyncio.timeout(patience):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sentinel, (address, self.address.port))
        except TimeoutError:
            sentinel.close()
            raise self._silent() from None
        except OSError as error:
            sentinel.close()
            raise self._failure(error) from None
        except BaseException:
            sentinel.close()
            raise
        self._keep_alive(sentinel)
        return sentinel

    def _prepare(self, sentinel: socket.socket) -> float:
        """Have the kernel try once a second, or say how long one attempt of ours may take."""
        try:
            sentinel.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, SYN_EVERY_MS)
            sentinel.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, SYN_COUNT)
        except OSError:
            return PATIENCE
        return ATTEMPT

    def _keep_alive(self, sentinel: socket.socket) -> None:
        timing = self._timing
        silence = timing.idle + timing.interval * timing.count
        sentinel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, timing.idle),
            (socket.TCP_KEEPINTVL, timing.interval),
            (socket.TCP_KEEPCNT, timing.count),
            (socket.TCP_USER_TIMEOUT, silence * 1000),
        ):
            sentinel.setsockopt(socket.IPPROTO_TCP, option, value)

    async def _hold(self, sentinel: socket.socket) -> float:
        """Return when the connection has ended, with the seconds that it lasted."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._ended = loop.create_future()
        loop.add_reader(sentinel, self._read, sentinel)
        try:
            await self._ended
        finally:
            loop.remove_reader(sentinel)
            sentinel.close()
            self._ended = None
        return loop.time() - begun

    def _read(self, sentinel: socket.socket) -> None:
        try:
            if sentinel.recv(4096):
                return  # a greeting; nobody here wants it
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end()

    def _end(self) -> None:
        if self._ended and not self._ended.done():
            self._ended.set_result(None)

    async def _pause(self, failures: int) -> None:
        seconds = min(FIRST_RETRY * 2 ** min(failures, 8), LONGEST_RETRY)
        if isinstance(self.error, (NoNetworkError, NoAddressError)):
            seconds = NO_WAY
        try:
            async with asyncio.timeout(spread(seconds, self._jitter)) as self._wait:
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            pass
        finally:
            self._wait = None

    def _publish(self, error: AttemptError | None) -> None:
        known = self.known.is_set()
        news = (type(error), not known) != (type(self.error), False)
        self.error = error
        self.known.set()
        if news:
            self._changed(self)

    def _way(self, address: str) -> Route | str:
        """Give the route to an address, or the reason why there is none."""
        try:
            return self._routes.find(address)
        except (NoNetworkError, NoAddressError) as error:
            return error.reason

    def _why(self, address: str) -> AttemptError:
        try:
            self._routes.find(address)
        except AttemptError as error:
            return error
        return self._silent()

    def _silent(self) -> AttemptError:
        return UnreachableError(f"{self.address.text} does not answer; see server and network")

    def _failure(self, error: OSError) -> TemporaryError:
        where = self.address.text
        match error.errno:
            case errno.ECONNREFUSED | errno.ECONNRESET:
                return ServerRefusedError(f"{where}: nothing answers on this port; see the server")
            case errno.ENETUNREACH | errno.ENETDOWN:
                return NoNetworkError(f"{where}: {error.strerror}; wait for the network")
            case errno.EADDRNOTAVAIL:
                return NoAddressError(f"{where}: {error.strerror}; wait for an address")
            case _:
                text = f"{where}: {error.strerror}; see the server and the network"
                return UnreachableError(text)
