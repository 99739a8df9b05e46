# SPDX-License-Identifier: LGPL-2.1-or-later
"""`iscsi://HOST[:PORT]/IQN[;portal=TPGT][;lun=N]`: a session with a target, through open-iscsi.

iscsid holds the sessions and brings them back; the kernel says how they are (iscsi_view.py). Ids
that differ in their LUN share a session.

A portal must answer before iscsid is asked to log in. Where that fails, the target is asked why: it
says so better than iscsiadm can; not before, since LIO serves one login after the other. A session
that is FAILED is iscsid's to bring back; where it does not, and nobody uses the disks, it is ended,
and so made anew (iscsi_recovery.py).
"""

import asyncio
import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Final
from weakref import WeakValueDictionary

from storaged_conn.core.model import Absent, Foreign, Observation, Present, Target, Topic, Value
from storaged_conn.drivers.base import Driver, part
from storaged_conn.drivers.iscsi_options import (
    OPTIONS,
    Remote,
    interface,
    login,
    login_timeout,
    read_options,
    read_portal,
    read_uri,
    settings,
    terms,
    topic,
    where,
)
from storaged_conn.drivers.iscsi_recovery import Recovery
from storaged_conn.drivers.iscsi_view import SessionView
from storaged_conn.errors import (
    AttemptError,
    AuthenticationError,
    BusyError,
    MissingError,
    RefusedError,
    TimedOutError,
    TroubleError,
    UnreachableError,
)
from storaged_conn.system.iscsi import FAILED, STATES, Session, Where
from storaged_conn.system.iscsi_login import knock, list_targets, log_in
from storaged_conn.system.iscsi_nodes import Nodes
from storaged_conn.system.iscsi_pdu import Login
from storaged_conn.system.iscsiadm import Iscsiadm
from storaged_conn.system.resolve import is_address
from storaged_conn.system.sentinel import Address
from storaged_conn.system.servers import Servers

logger = logging.getLogger(__name__)

ISCSID: Final = "/run/iscsid.pid"
"""Comes when iscsid starts. Source: open-iscsi usr/initiator.h, PID_FILE."""

USUAL_GROUP: Final = 1
"""The portal group that is tried where none is given: most targets have this one alone."""

UNEXPLAINED: Final = (
    RefusedError,
    MissingError,
    TroubleError,
    TimedOutError,
    UnreachableError,
)
"""What iscsiadm says for many reasons."""

LOOKS: Final = 50
BETWEEN: Final = 0.02
"""How often, and with how many seconds between, to look whether what was logged out is gone: some
10 ms after iscsiadm has ended, of which the kernel's message may come too early to be of use."""


class IscsiDriver(Driver):
    """Logs in to iSCSI targets."""

    options: ClassVar[Mapping[str, str]] = OPTIONS

    def __init__(
        self,
        view: SessionView,
        iscsiadm: Iscsiadm,
        nodes: Nodes,
        portals: Servers,
        recovery: Recovery,
    ) -> None:
        """Log in to nothing yet."""
        self._view = view
        self._iscsiadm = iscsiadm
        self._nodes = nodes
        self._portals = portals
        self._recovery = recovery
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._in_work: set[Where] = set()

    def serves(self, scheme: str) -> bool:
        """See Driver."""
        return scheme == "iscsi"

    def schemes(self) -> tuple[str, ...]:
        """See Driver."""
        return ("iscsi",)

    def parse(self, uri: str, options: Mapping[str, Value]) -> Target:
        """See Driver."""
        return Target(read_uri(uri).uri, *part(read_options(options)))

    def topics(self, target: Target) -> frozenset[Topic]:
        """See Driver."""
        remote = read_uri(target.uri)
        return frozenset(
            {
                Topic("portal", remote.server.text),
                Topic("iscsi", remote.iqn),
                Topic("directory", ISCSID),
                topic(remote, interface(target)),
            }
        )

    def clash(self, target: Target, other: Target) -> str:
        """See Driver."""
        if terms(target) == terms(other):
            return ""
        return f"options: {other.uri} is managed with others, and it is the same session"

    async def observe(self, target: Target) -> Observation:
        """See Driver."""
        await self._view.recall(target)
        session = self._view.find(target)
        if session is None:
            self._view.leave(target)
            return Absent()
        if session.state not in STATES:
            return None
        self._follow(target, session)
        found = await self._view.present(target, session)
        return found if not found.ours or await self._is_own(target, session) else Absent()

    async def connect(self, target: Target) -> Present:
        """See Driver."""
        if found := await self._adopt(target):
            return found
        async with self._turn(target):
            try:
                return await self._adopt(target) or await self._make(target)
            except AttemptError:
                if not self._view.find(target):  # else iscsid may be about to make it
                    await self._remove_records(target)
                raise

    async def disconnect(self, target: Target, present: Present | None) -> None:
        """See Driver; a session that others still want, or that others made, stays."""
        await self._view.recall(target)
        async with self._turn(target):
            session = self._view.find(target)
            if session is None:
                await self._remove_records(target)
            elif await self._is_own(target, session) and not self._view.is_shared(target, session):
                await self._end(target, session)
            self._view.leave(target)

    async def validate(self, target: Target) -> None:
        """See Driver."""
        remote = read_uri(target.uri)
        who = await self._login(target, remote.iqn)
        async with self._portals.reach(remote.server, holds=False) as address:
            portal = remote.server._replace(host=address)
            _check_group(remote, await knock(portal, who))
            await log_in(portal, who)

    async def discover(
        self, uri: str, options: Mapping[str, Value], *, trusted: bool = False
    ) -> list[Mapping[str, Value]]:
        """See Driver; a target is there once for each of its portals."""
        server = read_portal(uri)
        target = Target(uri, *part(read_options(options)), trusted=trusted)
        who = await self._login(target, "")
        async with self._portals.reach(server, holds=False) as address:
            found = await list_targets(server._replace(host=address), who)
        return [
            {"uri": Remote(at.address, iqn).uri, "iqn": iqn, "hostname": at.address.host,
             "port": at.address.port, "portal": at.group}
            for iqn, portals in found.items() for at in portals
        ]  # fmt: skip

    def foreign(self, known: Container[str] = ()) -> Iterable[Foreign]:
        """See Driver."""
        for session in self._view.all():
            if session.where not in self._in_work and session.state in STATES:
                yield self._view.listed(session)

    # inside

    def _turn(self, target: Target) -> asyncio.Lock:
        """Give what lets one thing at a time be done with a session."""
        key = topic(read_uri(target.uri), interface(target)).name
        return self._turns.setdefault(key, asyncio.Lock())

    def _follow(self, target: Target, session: Session) -> None:
        """Have a failed session waited for."""
        if session.state == FAILED:
            portal = read_uri(target.uri).server
            self._recovery.failed(session.name, portal, partial(self._give_up, target, session))
        else:
            self._recovery.forget(session.name)

    async def _give_up(self, target: Target, failed: Session) -> bool:
        """End a session that iscsid does not bring back, if it is ours and nobody is on its disks.

        Returns:
            Whether that is to be tried again.
        """
        async with self._turn(target):
            session = self._view.find(target)
            if session is None or (session.name, session.state) != (failed.name, FAILED):
                return False
            try:
                if not await self._view.owner(session):
                    return False
                if not self._view.use_of(session):
                    await self._log_out(session)
            except AttemptError as error:
                logger.warning("%s: it cannot be logged out: %s", session.name, error)
        return not self._view.is_gone(session)

    async def _adopt(self, target: Target) -> Present | None:
        """Take what is there, unless it is just being made."""
        await self._view.recall(target)
        session = self._view.find(target)
        if session is None or session.state not in STATES:
            return None
        self._follow(target, session)
        found = await self._view.present(target, session)
        if found.ours and not await self._is_own(target, session):
            self._view.leave(target)
            raise BusyError(f"{session.name} is connected under another URI; manage it under that")
        return found

    async def _is_own(self, target: Target, session: Session) -> bool:
        """Say whether we have made a session for this, or for what shares it."""
        return await self._view.owner(session) == read_uri(target.uri).session_uri

    async def _make(self, target: Target) -> Present:
        remote = read_uri(target.uri)
        who = await self._login(target, remote.iqn)
        if session := self._view.find(target):
            raise BusyError(f"{session.name} is being made by somebody else; see iscsiadm(8)")
        async with self._portals.reach(remote.server, holds=False) as address:
            if not is_address(remote.server.host):
                self._view.addresses[remote.session_uri] = address
                if found := await self._adopt(target):
                    return found
            with self._hidden(where(target, address)) as place:
                await self._enter(target, who, place)
                if session := self._view.find(target):  # its state may follow a little later
                    return await self._view.present(target, session)
        raise TroubleError(f"{remote.iqn}: logged in, and no session is there; see iscsid(8)")

    async def _enter(self, target: Target, who: Login, place: Where) -> None:
        """Log in; only where that fails, the target is asked why, and for its portal group."""
        remote = read_uri(target.uri)
        group = USUAL_GROUP if remote.group is None else remote.group
        try:
            await self._log_in(target, place, group)
        except UNEXPLAINED as error:
            portal = Address(place.address, place.port)
            told = await knock(portal, who)
            _check_group(remote, told)
            if told == group:
                if isinstance(error, RefusedError):
                    await log_in(portal, who)
                raise
            await self._nodes.remove(place)
            await self._log_in(target, place, told)

    @contextmanager
    def _hidden(self, place: Where) -> Iterator[Where]:
        """Have the echo of what is done here not listed as somebody else's."""
        self._in_work.add(place)
        try:
            yield place
        finally:
            self._in_work.discard(place)

    async def _log_in(self, target: Target, where: Where, group: int) -> None:
        before = where in await self._remove_records(target, where)  # those of another address
        uri = read_uri(target.uri).session_uri
        ours = await self._nodes.write(uri, where, group, settings(target), trusted=target.trusted)
        made = await self._iscsiadm.login(where, group, login_timeout(target))
        if session := self._view.find(target):
            self._view.learn(session, uri if ours and (made or before) else "")
        if ours and not made and not before:
            await self._nodes.remove(where)  # somebody else was faster

    async def _end(self, target: Target, session: Session) -> None:
        use = self._view.use_of(session)
        if use and not target.option("force"):
            raise BusyError(f"{session.name} is kept: {use}; unmount or release it")
        await self._log_out(session)
        self._recovery.forget(session.name)
        await self._remove_records(target)

    async def _log_out(self, session: Session) -> None:
        await self._iscsiadm.logout(session.number)
        for _ in range(LOOKS):
            if self._view.is_gone(session):
                return
            await asyncio.sleep(BETWEEN)
        raise BusyError(f"{session.name} is still being logged out; wait")

    async def _remove_records(self, target: Target, but: Where | None = None) -> set[Where]:
        """Remove the records that were made for this, of which no session is left.

        Returns:
            All that were there.
        """
        remote = read_uri(target.uri)
        records = await self._nodes.find(remote.iqn)
        for found, uri in records.items():
            mine = uri == remote.session_uri and found.interface == interface(target)
            if mine and found != but:
                await self._nodes.remove(found)
        return set(records)

    async def _login(self, target: Target, iqn: str) -> Login:
        """Say who logs in: without a name, as the administrator has set for all, if root asks.

        Raises:
            AuthenticationError: there is a name without its password.
            UnusableError: this host has no name.
        """
        if target.option("username") and not target.secret("password"):
            raise AuthenticationError("there is no 'password' for the 'username'; give it")
        lines = {**self._nodes.defaults(trusted=target.trusted), **settings(target)}
        return login(lines, await self._nodes.initiator(interface(target)), iqn)


def _check_group(remote: Remote, group: int) -> None:
    if remote.group is not None and remote.group != group:
        raise MissingError(f"the portal is of group {group}, not {remote.group}; see ';portal='")
