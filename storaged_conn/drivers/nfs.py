# SPDX-License-Identifier: LGPL-2.1-or-later
"""`nfs://HOST[:PORT]/EXPORT`: a directory of an NFS server, version 3 or 4.

A server is knocked at before anything is mounted from it, since mount.nfs waits for three minutes
for one that is silent. Once mounted, it is connected for as long as the mount answers (health.py).
"""

import asyncio
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from storaged_conn.core.model import Absent, Foreign, Observation, Present, Target, Topic, Value
from storaged_conn.drivers.health import Health
from storaged_conn.drivers.mount import MountDriver
from storaged_conn.drivers.nfs_options import OPTIONS, describe, mount_flags, read_own
from storaged_conn.drivers.nfs_remote import Remote, read_host, read_mount, read_uri
from storaged_conn.drivers.nfs_server import find, knock, list_exports
from storaged_conn.drivers.places import is_system
from storaged_conn.errors import (
    AccessDeniedError,
    AttemptError,
    NotOfferedError,
    ServerSaysNoError,
    StaleError,
    TemporaryError,
    TimedOutError,
    TroubleError,
    UnreachableError,
)
from storaged_conn.system.mountinfo import Mount, MountTable
from storaged_conn.system.mounting import Mounter, Place, check, tidy
from storaged_conn.system.probe import Verdict

FREE: Final = frozenset({"read-only", "stale", "version"})
"""The options with which a mount that somebody else made may do: it agrees with the first and the
last, and what is stale of others is left alone."""

CONFIRMED: Final = 2
"""Times in a row that a mount must be stale to be believed, a second apart: it is also while a
server exports everything anew."""


class NfsDriver(MountDriver):
    """Mounts NFS exports, and knows whether they answer."""

    options: ClassVar[Mapping[str, str]] = OPTIONS

    def __init__(
        self,
        table: MountTable,
        runtime_dir: Path,
        roots: Sequence[Path],
        mounter: Mounter,
        health: Health,
    ) -> None:
        """Take up what is ours from before; see MountDriver."""
        super().__init__(table, runtime_dir, roots, mounter)
        self._health = health
        self._stale: dict[object, int] = {}

    def serves(self, scheme: str) -> bool:
        """See Driver."""
        return scheme == "nfs"

    def schemes(self) -> tuple[str, ...]:
        """See Driver."""
        return ("nfs",)

    def parse(self, uri: str, options: Mapping[str, Value]) -> Target:
        """See Driver."""
        own = read_own(options) | self.read_common(options)
        return Target(read_uri(uri, _port(options)).uri, tuple(sorted(own.items())))

    def topics(self, target: Target) -> frozenset[Topic]:
        """See Driver."""
        remote = read_uri(target.uri)
        names = {Topic("server", remote.server.text), Topic("source", remote.source)}
        return super().topics(target) | names

    async def observe(self, target: Target) -> Observation:
        """See Driver; takes as long as the server takes to answer."""
        found = super().look_up(target)
        return await self._judge(target, found) if isinstance(found, Present) else found

    async def connect(self, target: Target) -> Present:
        """See Driver."""
        found = await super().connect(target)
        judged = await self._judge(target, found)
        if isinstance(judged, Absent):
            raise StaleError(f"{target.uri} is stale; have the server export it anew")
        return judged or replace(found, responsive=False)

    async def disconnect(self, target: Target, present: Present | None) -> None:
        """See Driver."""
        await super().disconnect(target, present)
        self._health.forget(self._topic(target))

    async def validate(self, target: Target) -> None:
        """See Driver."""
        remote, version = read_uri(target.uri), _version(target)
        async with self._health.reach(remote.server) as address:
            await knock(remote.server._replace(host=address), version)
            await find(remote, address, version)
        self.table.refresh()
        if not isinstance(super().look_up(target), Present):
            await check("", "nfs", self.place(target))

    async def discover(
        self, uri: str, options: Mapping[str, Value], *, trusted: bool = False
    ) -> list[Mapping[str, Value]]:
        """See Driver; where the exports are not told, the root of NFS 4 has them all."""
        server, _ = read_host(uri, _port(options))
        async with self._health.reach(server) as address:
            try:
                exports = await list_exports(address)
            except AttemptError:
                await knock(server._replace(host=address), "4")
                return [{"uri": Remote(server, "/").uri}]
        found = {Remote(server, export.path).uri: export.clients for export in exports}
        return [{"uri": uri, "clients": clients} for uri, clients in found.items()]

    def foreign(self, known: Container[str] = ()) -> Iterable[Foreign]:
        """See Driver."""
        for mount in (self.table.mounts or {}).values():
            remote = read_mount(mount)
            hidden = is_system(mount.target) and not self.is_ours_by_place(mount)
            if remote and self.is_seen(mount) and not hidden and not self._is_part(mount, remote):
                yield self.listed(remote.uri, mount)

    # what MountDriver asks for

    def matches(self, target: Target, mount: Mount) -> bool:
        """See MountDriver."""
        return read_mount(mount) == read_uri(target.uri)

    def resembles(self, target: Target, mount: Mount) -> bool:
        """See MountDriver; the kernel may show another name that it knows for the same server."""
        remote = read_mount(mount)
        same = remote is not None and remote.path == read_uri(target.uri).path
        return same or super().resembles(target, mount)

    def candidates(self, target: Target) -> Iterator[Mount]:
        """See MountDriver; options that nobody but us gave rule out what others mounted."""
        if not dict(target.options).keys() <= FREE:
            return
        for mount in self.table.named(read_uri(target.uri).source):
            agrees = mount.read_only == bool(target.option("read-only"))
            version = describe(mount).get("version")
            if agrees and _version(target) in {"", version} and self.matches(target, mount):
                yield mount

    def look_up(self, target: Target) -> Observation:
        """See MountDriver; what is stale is to be mounted anew."""
        found = super().look_up(target)
        mount = self.table.at(found.mountpoint) if isinstance(found, Present) else None
        if mount and isinstance(found, Present) and self._is_given_up(target, mount, found):
            return Absent()
        return found

    def present(self, mount: Mount, *, ours: bool | None = None) -> Present:
        """See MountDriver."""
        found, remote = super().present(mount, ours=ours), read_mount(mount)
        info = {**found.info, **describe(mount)}
        if remote:
            info |= {"hostname": remote.server.host, "port": remote.server.port}
            info |= {"remotePath": remote.path}
        return replace(found, info=info)

    async def attach(self, target: Target, place: Place) -> None:
        """See MountDriver."""
        remote, version = read_uri(target.uri), _version(target)
        async with self._health.reach(remote.server) as address:
            try:
                await knock(remote.server._replace(host=address), version)
                await self._mount(target, place, address)
            except ServerSaysNoError as error:
                if not self._health.is_settling(remote.server):
                    raise
                raise TroubleError(f"{error} (the server has only just come up)") from None

    async def detach(self, target: Target, place: Place, mount: Mount) -> None:
        """See MountDriver; what waits for a dead server is taken away from those who use it."""
        server = read_uri(target.uri).server
        remounts = target.option("stale") == "always" and self._is_stale(mount)
        if remounts or self._health.is_down(server):
            await self._let_go(place, mount)
            return
        try:
            async with self._health.while_up(server):
                await self.mounter.unmount(place, mount.id)
        except (UnreachableError, TimedOutError):
            if not self._health.is_down(server):
                raise
            await self._let_go(place, mount)

    # inside

    async def _mount(self, target: Target, place: Place, address: str) -> None:
        remote = read_uri(target.uri)
        flags = mount_flags(target, remote, address)
        try:
            await self.mounter.mount(remote.source, "nfs", flags, place)
        except (NotOfferedError, AccessDeniedError):
            with suppress(TemporaryError):  # the kernel cannot tell one from the other
                await find(remote, address, _version(target))
            raise

    async def _let_go(self, place: Place, mount: Mount) -> None:
        """Detach a mount, and go on when it is gone: who detaches it is held for up to a minute."""
        gone = asyncio.timeout(None)

        def hear(_: Sequence[Mount], removed: Sequence[Mount]) -> None:
            if mount.key in {one.key for one in removed}:
                gone.reschedule(0)

        self.table.listeners.append(hear)
        try:
            async with gone:
                await self.mounter.detach(place)
        except TimeoutError:
            pass
        finally:
            self.table.listeners.remove(hear)
        await tidy(place)

    async def _judge(self, target: Target, found: Present) -> Observation:
        """Say whether what is mounted works; None where that cannot be known."""
        mount, server = self.table.at(found.mountpoint), read_uri(target.uri).server
        if mount is None:
            return None  # it went meanwhile, of which there will be news
        verdict = await self._health.ask(mount, server, self._topic(target))
        if verdict is Verdict.STALE:
            self._count_stale(mount)
        elif verdict is Verdict.ANSWERS:
            self._stale.pop(mount.key, None)
        if self._is_given_up(target, mount, found):
            return Absent()
        if verdict is None:
            return None
        return replace(found, responsive=verdict is Verdict.ANSWERS)

    def _count_stale(self, mount: Mount) -> None:
        there = {one.key for one in (self.table.mounts or {}).values()}
        self._stale = {key: times for key, times in self._stale.items() if key in there}
        self._stale[mount.key] = self._stale.get(mount.key, 0) + 1

    def _is_given_up(self, target: Target, mount: Mount, found: Present) -> bool:
        return found.ours and target.option("stale") != "never" and self._is_stale(mount)

    def _is_stale(self, mount: Mount) -> bool:
        return self._stale.get(mount.key, 0) >= CONFIRMED

    def _is_part(self, mount: Mount, remote: Remote) -> bool:
        """Say whether the kernel mounted it by itself, where a server's file systems meet."""
        outer = (self.table.mounts or {}).get(mount.parent)
        whole = read_mount(outer) if outer else None
        if outer is None or whole is None or whole.server != remote.server:
            return False
        inner = mount.target.removeprefix(outer.target.rstrip("/"))
        return remote.path == whole.path.rstrip("/") + inner

    def _topic(self, target: Target) -> Topic:
        return Topic("mount", self.place(target).target)


def _version(target: Target) -> str:
    return str(target.option("version") or "")


def _port(options: Mapping[str, Value]) -> int | None:
    port = options.get("port")
    return port if isinstance(port, int) else None
