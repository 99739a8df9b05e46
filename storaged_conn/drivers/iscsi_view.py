# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which session of the kernel's is whose, and what there is to say about it.

A session is ours if its node record is, which a restart of this service finds again. Those who have
one of ours are known, so that it ends with the last of them and not before.
"""

from collections.abc import Iterable
from typing import Final

from storaged_conn.core.model import Foreign, Present, Target
from storaged_conn.drivers.iscsi_options import Remote, luns, read_uri, topic, where
from storaged_conn.system.iscsi import FAILED, LOGGED_IN, Disk, Session, Sessions
from storaged_conn.system.iscsi_nodes import Nodes
from storaged_conn.system.mountinfo import MountTable
from storaged_conn.system.resolve import is_address
from storaged_conn.system.sentinel import Address
from storaged_conn.system.usage import who_uses

PENDING: Final = "waiting-for-devices"


class SessionView:
    """The kernel's sessions, as targets see them.

    Attributes:
        addresses: where names have led to, by the URI of the session.
    """

    def __init__(self, sessions: Sessions, nodes: Nodes, mounts: MountTable) -> None:
        """Know of no session yet."""
        self.addresses: dict[str, str] = {}
        self._sessions = sessions
        self._nodes = nodes
        self._mounts = mounts
        self._ours: dict[str, str] = {}
        self._users: dict[str, set[Target]] = {}
        self._listed: dict[str, tuple[Session, bool, Foreign]] = {}

    async def recall(self, target: Target) -> None:
        """Find out where a name led to before a restart, as our records say.

        Raises:
            AttemptError: nobody knows where they are.
        """
        remote = read_uri(target.uri)
        if is_address(remote.server.host) or remote.session_uri in self.addresses:
            return
        for found, uri in (await self._nodes.find(remote.iqn)).items():
            if uri == remote.session_uri:
                self.addresses[uri] = found.address

    def find(self, target: Target) -> Session | None:
        """Look for the session of a target, as the kernel shows it now."""
        remote = read_uri(target.uri)
        address = self.addresses.get(remote.session_uri, remote.server.host)
        wanted = where(target, address)
        found = [one for one in self._sessions.of_target(remote.iqn) if one.where == wanted]
        if remote.group is not None:
            found = [one for one in found if one.portal == remote.group]
        return min(found, key=lambda one: (one.state != LOGGED_IN, one.number), default=None)

    def all(self) -> Iterable[Session]:
        """Give all sessions of this host."""
        return tuple(self._sessions.all().values())

    def is_gone(self, session: Session) -> bool:
        """Look whether the kernel does not have a session any more."""
        return self._sessions.refresh(session.name) is None

    async def owner(self, session: Session) -> str:
        """Say for which URI this service has made a session; nothing if it has not.

        Raises:
            AttemptError: nobody knows where the records are.
        """
        if session.name not in self._ours:
            records = await self._nodes.find(session.where.iqn)
            self.learn(session, records.get(session.where, ""))
        return self._ours[session.name]

    def learn(self, session: Session, uri: str) -> None:
        """Remember for what we have made a session, and forget those that are gone."""
        there = self._sessions.all()
        self._ours = {name: known for name, known in self._ours.items() if name in there}
        self._users = {name: users for name, users in self._users.items() if name in there}
        self._listed = {name: known for name, known in self._listed.items() if name in there}
        self._ours[session.name] = uri

    def leave(self, target: Target) -> None:
        """Learn that a target uses no session any more."""
        for users in self._users.values():
            users.discard(target)

    def is_shared(self, target: Target, session: Session) -> bool:
        """Say whether others use a session, too."""
        return bool(self._users.get(session.name, set()) - {target})

    def use_of(self, session: Session) -> str:
        """Say what on this host is on the disks of a session; nothing if nothing is."""
        mounts = self._mounts.mounts or {}
        uses = (
            who_uses(disk.name, mounts, self._sessions.sys) for disk in session.disks if disk.name
        )
        return next(filter(None, uses), "")

    async def present(self, target: Target, session: Session) -> Present:
        """Describe what a target has, which uses its session from now on if that is ours.

        Raises:
            AttemptError: nobody knows whose it is.
        """
        # before anybody else has his turn, who may be about to end it
        self._users.setdefault(session.name, set()).add(target)
        if not await self.owner(session):
            self.leave(target)
        remote, wanted = read_uri(target.uri), luns(target)
        ready = {disk.lun for disk in session.disks if disk.names}
        expected = wanted or {disk.lun for disk in session.disks}
        waits = session.state != FAILED and not (expected and expected <= ready)
        shown = [disk for disk in session.disks if remote.lun in {None, disk.lun}]
        return self.describe(session, shown, remote.server.host, PENDING if waits else "")

    def listed(self, session: Session) -> Foreign:
        """Describe a session that is nobody's; the same until something of it changes.

        All are listed whenever anything happens on the host.
        """
        ours = bool(self._ours.get(session.name))
        known = self._listed.get(session.name)
        if known and known[0] is session and known[1] == ours:
            return known[2]
        place = session.where
        remote = Remote(Address(place.address, place.port), place.iqn)
        present = self.describe(session, session.disks)
        found = Foreign(remote.uri, present, topic(remote, place.interface))
        self._listed[session.name] = (session, ours, found)
        return found

    def describe(
        self, session: Session, disks: Iterable[Disk], host: str = "", pending: str = ""
    ) -> Present:
        """Describe a session and some of its disks, reached by the name of a host."""
        place = session.where
        return Present(
            f"iscsi-session-{session.number}",
            ours=bool(self._ours.get(session.name)),
            responsive=session.state != FAILED,
            devices=tuple(name for disk in disks for name in disk.names),
            pending=pending,
            info={
                "hostname": host or place.address,
                "address": place.address,
                "port": place.port,
                "portal": session.portal,
                "iqn": place.iqn,
                "interface": place.interface,
                "session": session.number,
            },
        )
