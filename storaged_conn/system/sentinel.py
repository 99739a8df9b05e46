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

One that does not hold its connection only finds out that there is something that answers, and
closes: LIO serves one login after the other, and would wait for ours for 15 s. Once it has found
that out it rests, until somebody asks again (`ask`) or the way to the server changes.
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
from storaged_conn.system.resolve import is_address, resolve
from storaged_conn.system.routes import Route, Routes

PATIENCE: Final = 1.2
"""Seconds without an answer after which a server counts as down, while the attempt goes on: a lost
SYN and a lost question for the neighbour's address are sent again after one. Source: RFC 6298
section 2; arp(7), retrans_time_ms."""

ATTEMPT: Final = 120.0
"""Seconds of one attempt where the kernel sends a SYN every second for us."""

NAME_ATTEMPT: Final = 15.0
"""The same for what a name led to, since it may lead elsewhere after that. Source: RFC 1912 section
2.2: what is to move soon has a TTL of minutes; failover services use 30 s and more."""

STAGGER: Final = 0.25
"""Seconds before the next address is tried beside the first. Source: RFC 8305 section 5."""

FIRST_RETRY: Final = 0.05
LONGEST_RETRY: Final = 0.9
"""Seconds between attempts at a server that refuses: its return must show within 1 s."""

HEARING: Final = 0.01
"""Seconds after a neighbour was heard of: the attempt that had the kernel ask for it succeeds by
itself, in a round trip (1 ms on a LAN), and must not be replaced in that very moment."""

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


MAX_PORT: Final = 65535
"""Source: RFC 9293 section 3.1."""


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
        holds: it keeps its connection.
    """

    def __init__(
        self,
        address: Address,
        routes: Routes,
        timing: Timing,
        changed: Callable[["Sentinel"], None],
        *,
        holds: bool = True,
    ) -> None:
        """Nothing happens before `live` runs."""
        self.address = address
        self.holds = holds
        self.error: AttemptError | None = None
        self.answers_at = ""
        self.known = asyncio.Event()
        self._routes = routes
        self._timing = timing
        self._changed = changed
        self._wait: asyncio.Timeout | None = None
        self._ended: asyncio.Future[None] | None = None
        self._dialling = False
        self._left: list[socket.socket] = []
        self._addresses: list[str] = []
        self._ways: list[Route | str] = []
        self._allowance = Allowance()
        self._kicked = False
        self._fresh = asyncio.Event()
        self._jitter = (hash(address) % 1000) / 1000

    def check(self) -> None:
        """Raise why it is down, if it is."""
        if self.error:
            raise type(self.error)(str(self.error))

    async def ask(self) -> None:
        """Wait for a verdict, which is a new one where it does not hold a connection.

        Raises:
            AttemptError: the server is down.
        """
        if self._ended and not self.holds:
            self._fresh.clear()
            self._end()
        await self._fresh.wait()
        self.check()

    async def live(self) -> None:
        """Keep a connection, for ever."""
        try:
            await self._live()
        finally:
            self._close_left()

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            begun = loop.time()
            sentinel = await self._connect()
            if sentinel:
                self._publish(None)
                self._close_left()
                short = await self._hold(sentinel) < SHORT_LIFE and self.holds
                failures = failures + 1 if short else 0
            else:
                failures += 1
            # the end of a connection that worked is a reason to make the next one at once
            if not self._kicked and failures > bool(sentinel):
                await self._pause(failures, begun)
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
        elif changed and ways:
            self._publish(self._why(self._addresses[0]))  # another reason why there is none
            if self._dialling and self._wait and not self._wait.expired():
                self._wait.reschedule(asyncio.get_running_loop().time())  # see _leave

    def hear_of(self, address: str) -> None:
        """Try anew if this is the server, or the way to it."""
        gateways = [way.gateway for way in self._ways if isinstance(way, Route)]
        if self.error and address in (*self._addresses, *gateways):
            asyncio.get_running_loop().call_later(HEARING, self._kick_if_down)

    def _kick_if_down(self) -> None:
        if self.error:
            self.kick()

    def renew(self) -> None:
        """Connect anew at once, though the connection may be alive."""
        self._end()
        self.kick()

    def kick(self) -> None:
        """End the pause, or the attempt that is stuck in the kernel's backoff, for a new one.

        Where that was done too often, it ends as soon as there is an allowance again.
        """
        now = asyncio.get_running_loop().time()
        until = self._wait.when() if self._wait else None
        if not self._wait or self._wait.expired() or until is None or until <= now:
            return
        delay = self._allowance.take(now)
        if now + delay < until:
            self._kicked = not delay
            self._wait.reschedule(now + delay)

    async def _connect(self) -> socket.socket | None:
        """Make one attempt; a kick ends it early."""
        verdict = asyncio.get_running_loop().call_later(PATIENCE, self._lose_patience)
        self._dialling = True
        try:
            longest = ATTEMPT if is_address(self.address.host) else NAME_ATTEMPT
            async with asyncio.timeout(longest) as self._wait:
                self._addresses = await self._resolve()
                return await self._dial_all()
        except TimeoutError:
            return None
        except AttemptError as error:
            self._publish(error)
            return None
        finally:
            self._wait = None
            self._dialling = False
            verdict.cancel()

    async def _resolve(self) -> list[str]:
        host = self.address.host
        if self.error or not self.answers_at:
            self._addresses = []
            return await resolve(host)
        # It answered until now: what becomes of its name must not take that away.
        try:
            async with asyncio.timeout(PATIENCE / 2):
                return await resolve(host)
        except (NameResolutionError, TimeoutError):
            return [self.answers_at]

    async def _dial_all(self) -> socket.socket:
        self._ways = [self._way(one) for one in self._addresses]
        usable = [
            one
            for one, way in zip(self._addresses, self._ways, strict=True)
            if isinstance(way, Route)
        ]
        if not usable:
            raise self._why(self._addresses[0])
        made: list[socket.socket] = []
        attempts = [partial(self._dial, one, made) for one in usable]
        try:
            winner, index, failures = await staggered_race(attempts, STAGGER)
        except BaseException:
            for sentinel in made:
                sentinel.close()  # it was connected in the very moment in which this was ended
            raise
        if not isinstance(winner, socket.socket) or index is None:
            known = [one for one in failures if isinstance(one, AttemptError)]
            raise next(iter(known), self._silent())
        self.answers_at = usable[index]
        return winner

    async def _dial(self, address: str, made: list[socket.socket]) -> socket.socket:
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
        made.append(sentinel)
        self._keep_alive(sentinel)
        return sentinel

    def _prepare(self, sentinel: socket.socket) -> float:
        """Have the kernel try once a second, or say how long one attempt of ours may take."""
        try:
            sentinel.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, SYN_EVERY_MS)
            sentinel.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, SYN_COUNT)
        except OSError:
            return SYN_EVERY_MS / 1000
        return ATTEMPT

    def _keep_alive(self, sentinel: socket.socket) -> None:
        timing = self._timing
        silence = timing.idle + timing.interval * timing.count
        sentinel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, timing.idle),
            (socket.TCP_KEEPINTVL, timing.interval),
            (socket.TCP_KEEPCNT, timing.count),
            (socket.TCP_USER_TIMEOUT, min(silence * 1000, 2**31 - 1)),
        ):
            sentinel.setsockopt(socket.IPPROTO_TCP, option, value)

    async def _hold(self, sentinel: socket.socket) -> float:
        """Return when the connection has ended, with the seconds that it lasted."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._ended = loop.create_future()
        if self.holds:
            loop.add_reader(sentinel, self._read, sentinel)
        else:
            sentinel.close()
        try:
            await self._ended
        finally:
            if self.holds:
                loop.remove_reader(sentinel)
                self._leave(sentinel)
            self._ended = None
        return loop.time() - begun

    def _leave(self, sentinel: socket.socket) -> None:
        """Close a connection; where its way is gone, not before there is another.

        Whatever the kernel sends into the void has it ask for the neighbour's address, once a
        second (arp(7), retrans_time_ms), and all that is sent when the way is back waits for that.
        """
        if isinstance(self.error, (NoNetworkError, NoAddressError)):
            sentinel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            self._left.append(sentinel)
        else:
            sentinel.close()

    def _close_left(self) -> None:
        for sentinel in self._left:
            sentinel.close()
        self._left.clear()

    def _read(self, sentinel: socket.socket) -> None:
        try:
            if sentinel.recv(4096):
                return  # a greeting; nobody here wants it
        except BlockingIOError:
            return
        except ConnectionResetError:
            pass  # as a close: it may be the server's way to end what is idle
        except OSError as error:
            self._publish(self._failure(error))  # silence is a loss, and was waited for long enough
        self._end()

    def _end(self) -> None:
        if self._ended and not self._ended.done():
            self._ended.set_result(None)

    async def _pause(self, failures: int, begun: float) -> None:
        """Wait until it is time for the next attempt, which counts from when the last one began."""
        seconds = min(FIRST_RETRY * 2 ** min(failures, 8), LONGEST_RETRY)
        if isinstance(self.error, (NoNetworkError, NoAddressError)):
            seconds = NO_WAY
        try:
            async with asyncio.timeout_at(begun + spread(seconds, self._jitter)) as self._wait:
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            pass
        finally:
            self._wait = None

    def _lose_patience(self) -> None:
        if self._addresses:
            self._publish(self._why(self._addresses[0]))
        else:
            text = f"the name {self.address.host} is not resolved yet; see DNS"
            self._publish(NameResolutionError(text))

    def _publish(self, error: AttemptError | None) -> None:
        known = self.known.is_set()
        news = (type(error), not known) != (type(self.error), False)
        self.error = error
        self.known.set()
        self._fresh.set()
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
