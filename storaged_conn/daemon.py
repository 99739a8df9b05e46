# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds everything, keeps it running, and stops it in reverse order. Disconnects nothing."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from storaged_conn.bus.connection import Bus, BusLostError
from storaged_conn.bus.systemd import RUNNING, SystemdMounter
from storaged_conn.bus.wire import Field, Message
from storaged_conn.config import Config
from storaged_conn.core.model import Record
from storaged_conn.drivers.base import Driver
from storaged_conn.drivers.file import FileDriver
from storaged_conn.drivers.health import Health
from storaged_conn.drivers.iscsi import IscsiDriver
from storaged_conn.drivers.iscsi_recovery import Recovery
from storaged_conn.drivers.iscsi_view import SessionView
from storaged_conn.drivers.nfs import NfsDriver
from storaged_conn.drivers.nvme import NvmeDriver
from storaged_conn.drivers.nvme_registry import Registry
from storaged_conn.drivers.nvme_table import Table
from storaged_conn.drivers.posix import PosixDriver
from storaged_conn.drivers.simulated import SimulatedDriver
from storaged_conn.errors import StoreError
from storaged_conn.front.authorize import Authority
from storaged_conn.front.callers import Callers
from storaged_conn.front.contract import load
from storaged_conn.front.dispatch import MAX_CALL, Dispatcher
from storaged_conn.front.faces import ConnectionFace, ManagerFace, describe
from storaged_conn.front.lifetimes import Lifetimes
from storaged_conn.front.objects import Objects
from storaged_conn.front.polkit import Polkit
from storaged_conn.front.tree import Tree
from storaged_conn.front.waits import Waits
from storaged_conn.leaving import is_note, retire
from storaged_conn.manager import Manager
from storaged_conn.names import CONNECTION, DBUS, SERVICE
from storaged_conn.sources.base import Source
from storaged_conn.sources.directories import DirectorySource
from storaged_conn.sources.iscsi import TRANSPORTS, IscsiSource
from storaged_conn.sources.mounts import MountSource
from storaged_conn.sources.nvme import NvmeSource
from storaged_conn.sources.routes import RouteSource
from storaged_conn.sources.servers import ServerSource
from storaged_conn.sources.sleep import SleepSource
from storaged_conn.sources.uevents import NVME, SESSIONS, UeventSource
from storaged_conn.store import Store
from storaged_conn.system import mounting
from storaged_conn.system.iscsi import Sessions
from storaged_conn.system.iscsi_nodes import Nodes
from storaged_conn.system.iscsiadm import Iscsiadm
from storaged_conn.system.mountinfo import HOST, MOUNTINFO, MountTable
from storaged_conn.system.mounting import Mounter
from storaged_conn.system.notify import notify, watchdog_interval
from storaged_conn.system.nvme import Controllers
from storaged_conn.system.routes import Routes
from storaged_conn.system.servers import Servers
from storaged_conn.vault import Vault

T = TypeVar("T")

DO_NOT_QUEUE: Final = 4
PRIMARY_OWNER: Final = 1
"""Source: D-Bus specification, org.freedesktop.DBus.RequestName."""

FLUSH: Final = 1.0
"""Seconds for the last replies at the end; SIGTERM must be obeyed within 2."""

STATUS_PAUSE: Final = 1.0
"""Seconds between two status lines for systemd: it is read by people."""


class NameTakenError(Exception):
    """Another service owns our name."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says; see storaged-connd --help."""

    bus: str
    state_dir: Path
    runtime_dir: Path
    mount_roots: tuple[Path, ...]
    simulated: bool
    config: Config


class _StopError(Exception):
    """Ends the task group; asked for, so not an error outside of it."""


class Daemon:
    """The service, from its start to its end."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is opened before `run`."""
        self._settings = settings

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            StoreError: the records cannot be read.
            BusLostError: there is no bus, or it went away.
            NameTakenError: the service runs already.
        """
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        store = Store(self._settings.state_dir / "connections.db")
        records = store.open()
        vault = Vault(store, encrypts=self._settings.config.encrypt)
        with closing(store), suppress(_StopError):
            bus = await _unless(stop, Bus.open(self._settings.bus, max_message=MAX_CALL))
            with closing(bus):
                await self._serve(bus, vault, records, stop)

    async def _serve(
        self, bus: Bus, vault: Vault, records: list[Record], stop: asyncio.Event
    ) -> None:
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                parts = await _build(self._settings, bus, vault, tasks)
                with closing(parts):
                    found = await _unless(stop, vault.read(records))
                    await _unless(stop, parts.restore(found))
                    await _unless(stop, _take_name(bus))
                    parts.announce()
                    await _until(stop, bus)
        except* _StopError:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH):
                    await bus.flush()
        except* (BusLostError, NameTakenError, StoreError) as group:
            failure = group.exceptions[0]
        if failure:
            raise failure


@dataclass(slots=True)
class _Parts:
    """What runs between the bus and the kernel."""

    manager: Manager
    objects: Objects
    lifetimes: Lifetimes
    vault: Vault
    status: "_Status"
    audit: float
    _audit: asyncio.TimerHandle | None = None

    async def restore(self, records: Sequence[Record]) -> None:
        """Take up what was managed before; end what was to end, with its boot or its caller."""
        alive, notes = [], []
        for record in records:
            if is_note(record):
                notes.append(record)
            elif await self.lifetimes.is_alive(record):
                alive.append(record)
            else:
                notes.append(await retire(self.vault, record))
        self.manager.start(alive, notes)
        for record in alive:
            await self.lifetimes.follow(record)

    def announce(self) -> None:
        """Tell the bus and systemd that the service is there."""
        self.objects.announce()
        self.status.ready()
        self._audit_later()

    def close(self) -> None:
        """Stop watching and trying."""
        if self._audit:
            self._audit.cancel()
        self.status.close()
        self.manager.stop()

    def _audit_later(self) -> None:
        if self.audit:
            loop = asyncio.get_running_loop()
            self._audit = loop.call_later(self.audit, self._audit_now)

    def _audit_now(self) -> None:
        self.manager.audit()
        self._audit_later()


async def _build(settings: Settings, bus: Bus, vault: Vault, tasks: asyncio.TaskGroup) -> _Parts:
    table = MountTable(HOST if _by_systemd(settings) else MOUNTINFO)
    servers = Servers(Routes(), settings.config.keepalive, tasks.create_task)
    health = Health(servers, tasks.create_task)
    recovery, sessions = Recovery(servers, tasks.create_task), Sessions()
    drivers = _drivers(settings, table, servers, health, _mounter(settings, bus, table))
    drivers.append(_iscsi_driver(sessions, table, servers, recovery))
    drivers.append(_nvme_driver(settings, table, servers, tasks))
    sleep = SleepSource(bus, tasks.create_task)
    network = (RouteSource(servers), ServerSource(servers))
    mounts = (MountSource(table), DirectorySource(table))
    sources = (*mounts, *network, *_devices(sessions), sleep)
    manager = Manager(drivers, sources, vault, tasks.create_task)
    sleep.pause, sleep.resume = manager.pause, partial(_wake_up, manager, servers)
    health.news = partial(manager.look, hint=True)
    for driver in drivers:
        if isinstance(driver, SimulatedDriver):
            driver.news = partial(manager.look, hint=True)
    callers = Callers(bus)
    (bus_id,) = await bus.ask("GetId")
    lifetimes = Lifetimes(_boot_id(), bus_id, callers)
    lifetimes.begin(manager, tasks.create_task)
    contract = load()
    objects = Objects(bus, contract[CONNECTION], partial(_describe, manager))
    waits, status = Waits(manager, callers), _Status(manager)
    for listener in (objects, waits, status):
        manager.listen(listener)
    faces = (ManagerFace(manager, objects, lifetimes), ConnectionFace(manager, waits))
    tree = Tree(contract, objects, faces, manager.option_table(), _machine_id())
    authority = Authority(Polkit(bus, callers), manager.view)
    Dispatcher(bus, tree, callers, authority, tasks.create_task)
    return _Parts(manager, objects, lifetimes, vault, status, settings.config.audit)


def _devices(sessions: Sessions) -> tuple[Source, ...]:
    iscsi, nvme = IscsiSource(sessions), NvmeSource()
    others: dict[str, Callable[[str], None]]
    others = {TRANSPORTS: iscsi.open, SESSIONS: iscsi.hear, NVME: nvme.hear}
    return UeventSource(others), iscsi, nvme


def _wake_up(manager: Manager, servers: Servers) -> None:
    manager.resume()
    servers.retry()


def _by_systemd(settings: Settings) -> bool:
    """Say who mounts: PID 1, where it is systemd and on this bus, or mount(8) in a child."""
    return settings.bus == "system" and RUNNING.is_dir()


def _mounter(settings: Settings, bus: Bus, table: MountTable) -> Mounter:
    if _by_systemd(settings):
        return SystemdMounter(bus, settings.runtime_dir / "words", table)
    return mounting


def _drivers(
    settings: Settings, table: MountTable, servers: Servers, health: Health, mounter: Mounter
) -> list[Driver]:
    common = (table, settings.runtime_dir, settings.mount_roots, mounter)
    drivers = [FileDriver(*common), PosixDriver(*common), NfsDriver(*common, health)]
    return [*drivers, SimulatedDriver(servers)] if settings.simulated else [*drivers]


def _iscsi_driver(
    sessions: Sessions, table: MountTable, servers: Servers, recovery: Recovery
) -> IscsiDriver:
    iscsiadm = Iscsiadm()
    nodes = Nodes(iscsiadm)
    return IscsiDriver(SessionView(sessions, nodes, table), iscsiadm, nodes, servers, recovery)


def _nvme_driver(
    settings: Settings, table: MountTable, servers: Servers, tasks: asyncio.TaskGroup
) -> NvmeDriver:
    plans = settings.runtime_dir / "ours/NvmeDriver"
    controllers = Table(Controllers(), Registry(), servers, plans)
    return NvmeDriver(controllers, table, servers, tasks.create_task)


def _describe(manager: Manager, cid: str) -> dict[str, object] | None:
    view = manager.view(cid)
    return describe(view) if view else None


def _boot_id() -> str:
    """Read what differs from boot to boot. Source: random(4), boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _machine_id() -> str:
    """Read this machine's id, or make one that is nobody's. Source: machine-id(5)."""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        with suppress(OSError):
            return path.read_text().strip()
    return "0" * 32


async def _take_name(bus: Bus) -> None:
    (answer,) = await bus.ask("RequestName", "su", SERVICE, DO_NOT_QUEUE)
    if answer != PRIMARY_OWNER:
        raise NameTakenError(f"{SERVICE} is owned by another process; stop that service first")
    bus.listen(partial(_watch_name, bus))


def _watch_name(bus: Bus, message: Message) -> None:
    if message.text(Field.SENDER) == DBUS and message.text(Field.MEMBER) == "NameLost":
        bus.close(BusLostError(f"{SERVICE} was taken from us"))


async def _unless(stop: asyncio.Event, doing: Coroutine[object, object, T]) -> T:
    """Do something, such as wait for a bus that does not answer, until the service is to stop.

    Raises:
        _StopError: it is, and what was being done is cancelled.
    """
    task, stopping = asyncio.ensure_future(doing), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        raise _StopError
    return task.result()


async def _until(stop: asyncio.Event, bus: Bus) -> None:
    """Serve until there is a reason not to.

    Raises:
        BusLostError: the bus is gone.
        _StopError: somebody wants the service to stop; it ends the task group.
    """
    bus.lost.add_done_callback(lambda _: stop.set())
    await stop.wait()
    notify("STOPPING=1")
    if bus.lost.done():
        bus.lost.result()
    raise _StopError


class _Status:
    """Tells systemd how it goes; a Listener of the manager."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._timer: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._interval = watchdog_interval()

    def ready(self) -> None:
        """Report that the service is up, and begin to feed the watchdog from the event loop."""
        notify(f"READY=1\n{self._line()}")
        self._feed()

    def added(self, cid: str) -> None:
        """See unmanaged.Listener."""
        self.changed(cid)

    def changed(self, cid: str) -> None:
        """See unmanaged.Listener."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STATUS_PAUSE, self._report)

    def removed(self, cid: str) -> None:
        """See unmanaged.Listener."""
        self.changed(cid)

    def close(self) -> None:
        """Report no more."""
        for timer in (self._timer, self._watchdog):
            if timer:
                timer.cancel()

    def _report(self) -> None:
        self._timer = None
        notify(self._line())

    def _feed(self) -> None:
        if self._interval:
            notify("WATCHDOG=1")
            loop = asyncio.get_running_loop()
            self._watchdog = loop.call_later(self._interval, self._feed)

    def _line(self) -> str:
        states = self._manager.count()
        text = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        return f"STATUS={text or 'no connections'}"
