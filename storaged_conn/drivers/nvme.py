# SPDX-License-Identifier: LGPL-2.1-or-later
"""`nvme+tcp://HOST[:PORT]/NQN`, and with rdma and fc: the namespaces of an NVMe subsystem.

One target is one controller of the kernel's, which connects anew by itself for as long as it is
there (nvme_options.py); what goes, whoever ended it, is made anew by us. Of a loss the kernel says
nothing but a word in its log, so the server's sentinel tells of it, too.

A connect that is in the kernel can neither be hurried nor taken back; so it is waited for, whatever
becomes of the server and of the wish meanwhile (core/machine.py, WITHDRAWING).
"""

from collections.abc import AsyncIterator, Container, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import ClassVar, Final

from storaged_conn.core.model import Foreign, Observation, Present, Target, Topic, Value
from storaged_conn.drivers.base import Driver, part
from storaged_conn.drivers.nvme_host import read_host
from storaged_conn.drivers.nvme_options import IDENTITY, OPTIONS, fabrics_line, read_own
from storaged_conn.drivers.nvme_remote import (
    DISCOVERY_PORT,
    PORT,
    PREFIX,
    TRANSPORTS,
    Remote,
    read_server_uri,
    read_uri,
)
from storaged_conn.drivers.nvme_server import (
    check_allowed,
    check_discovery,
    explain,
    knock,
    list_subsystems,
)
from storaged_conn.drivers.nvme_table import Table
from storaged_conn.errors import AttemptError, BusyError, ServerRefusedError, TroubleError
from storaged_conn.system import fabrics
from storaged_conn.system.fabrics import Fabrics, ThereError, UnexplainedError
from storaged_conn.system.mountinfo import MountTable
from storaged_conn.system.probe import Spawn
from storaged_conn.system.resolve import is_address, resolve
from storaged_conn.system.sentinel import Address
from storaged_conn.system.servers import Servers

KIND: Final = "nvme"
"""Topics of this kind are named by a subsystem."""

ALL: Final = Topic("nvme-controllers", "")
"""News of a controller whose subsystem is not known."""


class NvmeDriver(Driver):
    """Connects NVMe subsystems at a fabric."""

    options: ClassVar[Mapping[str, str]] = OPTIONS

    def __init__(
        self,
        table: Table,
        mounts: MountTable,
        servers: Servers,
        spawn: Spawn,
        kernel: Fabrics = fabrics,
    ) -> None:
        """Listen to what the sentinels say.

        Args:
            table: of the controllers.
            mounts: kept up to date by whoever watches it.
            servers: say whether a server answers.
            spawn: starts what nobody waits for.
            kernel: who connects.
        """
        self._table = table
        self._mounts = mounts
        self._kernel = kernel
        self._servers = servers
        self._spawn = spawn
        servers.listeners.append(self._hear)

    def serves(self, scheme: str) -> bool:
        """See Driver."""
        return scheme in self.schemes()

    def schemes(self) -> tuple[str, ...]:
        """See Driver."""
        return tuple(f"{PREFIX}{transport}" for transport in TRANSPORTS)

    def parse(self, uri: str, options: Mapping[str, Value]) -> Target:
        """See Driver."""
        remote = read_uri(uri)
        return Target(remote.uri, *part(read_own(remote, options)))

    def topics(self, target: Target) -> frozenset[Topic]:
        """See Driver."""
        remote = read_uri(target.uri)
        server = {Topic("server", remote.server.text)} if remote.server else set()
        return frozenset({Topic(KIND, remote.nqn), ALL} | server)

    def clash(self, target: Target, other: Target) -> str:
        """See Driver; the kernel makes a second controller only for another identity."""
        same = all(target.option(name) == other.option(name) for name in IDENTITY)
        if target.uri != other.uri or not same:
            return ""
        given = ", ".join(f"{name}={value}" for name, value in other.options) or "none"
        return f"options: {other.uri} is managed already, with other ones: {given}"

    async def observe(self, target: Target) -> Observation:
        """See Driver."""
        return self._table.look_up(target)

    async def connect(self, target: Target) -> Present:
        """See Driver."""
        self._table.settle(target)  # what a crash has left
        found = self._table.look_up(target)
        if isinstance(found, Present):
            return found
        remote = read_uri(target.uri)
        async with self._reach(remote) as address:
            self._table.learn(remote.host, address)
            found = self._table.look_up(target)  # somebody else's, now that the address is known
            if isinstance(found, Present):
                return found
            if found is None:
                raise BusyError(f"{target.uri}: what was connected is still going; wait")
            await self._connect(target, remote, address)
        found = self._table.look_up(target)
        if isinstance(found, Present):
            return found
        raise TroubleError(f"{target.uri}: connected, and gone again; see the kernel's log")

    async def disconnect(self, target: Target, present: Present | None) -> None:
        """See Driver; what others connected stays, and so does what carries what is in use."""
        found = self._table.look_up(target)
        controller = self._table.find(target)
        ours = not isinstance(found, Present) or found.ours
        if controller and isinstance(found, Present) and ours:
            if not target.option("force"):
                self._mounts.refresh()
                self._table.check_unused(controller, self._mounts)
            server = read_uri(target.uri).server
            silent = bool(server and self._servers.failure(server))
            await self._kernel.delete(controller.name, controller.serial, silent=silent)
        if controller and ours and self._table.is_there(controller):
            raise BusyError(f"{controller.name} is still being disconnected; wait")
        self._table.drop(target)

    async def validate(self, target: Target) -> None:
        """See Driver; whether a key is right is not tried."""
        remote, host = read_uri(target.uri), read_host(target)
        async with self._reach(remote) as address:
            check_allowed(target, remote, address, host)
            await knock(target, remote, address, host)
        await self._kernel.check(fabrics_line(target, remote, address, host))

    async def discover(
        self, uri: str, options: Mapping[str, Value], *, trusted: bool = False
    ) -> list[Mapping[str, Value]]:
        """See Driver; asks the discovery service, at its own port or at that of the subsystems."""
        remote = read_server_uri(uri, DISCOVERY_PORT)
        server = check_discovery(remote)
        host = read_host(Target(uri, *part(read_own(remote, options))))
        try:
            async with self._servers.reach(server) as address:
                return await list_subsystems(address, server.port, host)
        except ServerRefusedError:
            other = read_server_uri(uri, PORT)
            if other == remote:  # the port was given
                raise
        async with self._servers.reach(server._replace(port=PORT)) as address:
            return await list_subsystems(address, PORT, host)

    def foreign(self, known: Container[str] = ()) -> Iterable[Foreign]:
        """See Driver."""
        return self._table.foreign(known)

    # inside

    def _hear(self, server: Address) -> None:
        """Have the kernel try anew where it waits for a server that is back."""
        if self._servers.failure(server) is None:
            for address in self._table.waiting(server):
                self._spawn(self._hurry(address, server.port))

    async def _hurry(self, address: str, port: int) -> None:
        with suppress(AttemptError):  # it takes a little longer then
            await self._kernel.hurry(address, port)

    @asynccontextmanager
    async def _reach(self, remote: Remote) -> AsyncIterator[str]:
        """Wait for a server; gives the address at which it is.

        Raises:
            AttemptError: it does not answer.
        """
        if remote.server:
            async with self._servers.reach(remote.server) as address:
                yield address
        elif remote.transport == "fc" or is_address(remote.host):
            yield remote.host
        else:
            yield (await resolve(remote.host))[0]

    async def _connect(self, target: Target, remote: Remote, address: str) -> None:
        host = read_host(target)
        check_allowed(target, remote, address, host)
        self._table.plan(target, address)
        try:
            made = await self._kernel.connect(fabrics_line(target, remote, address, host))
            self._table.settle(target, made)
        except ThereError:
            self._table.drop(target)  # somebody else was quicker
        except (UnexplainedError, ServerRefusedError) as error:
            self._table.drop(target)
            why = await explain(target, remote, address, host)
            raise why or TroubleError(str(error)) from None
        except AttemptError:
            self._table.settle(target)  # a time-out may come just after the end
            if not isinstance(self._table.look_up(target), Present):
                raise
