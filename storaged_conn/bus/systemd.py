# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mounts by systemd: transient mount units, which PID 1 starts and ends for us.

So a mount outlives us and any sandbox of ours, and a shutdown unmounts what is on the network while
there is one. What is asked of the place stays ours: a child looks at it, and makes it, before.

- Jobs ignore dependencies: a mount on the network wants network-online.target, and would wait for
  it at boot; to stop a mount would stop first what requires it. The order at shutdown, which the
  unit's own stop job keeps, remains.
- A unit is never reloaded or restarted: PID 1 itself would look at a dead server (systemd#42050).
- LazyUnmount= and ForceUnmount= are fixed when a unit is made, and would take away what is in use
  with every stop. So a unit is stopped plainly, and a mount whose server is dead is detached by a
  short service; the mount unit ends by itself then.
- PID 1 does not tell what mount(8) said: it goes to a file of ours (StandardError=file:).

Source: org.freedesktop.systemd1(5), systemd.mount(5); tried with systemd 252 and 257.
"""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from storaged_conn.bus.connection import Bus, BusLostError, CallError
from storaged_conn.bus.wire import Field, Message, Variant
from storaged_conn.errors import (
    AttemptError,
    BusyError,
    MissingError,
    RefusedError,
    TimedOutError,
    TroubleError,
)
from storaged_conn.system.mount_child import DETACH, UMOUNT
from storaged_conn.system.mountinfo import MountTable
from storaged_conn.system.mounting import (
    DEADLINE,
    FORCED,
    Place,
    explain,
    prepare,
    prepare_bind,
    tidy,
)
from storaged_conn.system.run import OUTPUT_LIMIT, Result

RUNNING: Final = Path("/run/systemd/system")
"""Is there where systemd is PID 1. Source: sd_booted(3)."""

SYSTEMD: Final = "org.freedesktop.systemd1"
MANAGER: Final = "org.freedesktop.systemd1.Manager"
PATH: Final = "/org/freedesktop/systemd1"
RULE: Final = f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'"

MODE: Final = "ignore-dependencies"

CALL: Final = 25.0
"""Seconds for PID 1 to take a job. Source: sd_bus_set_method_call_timeout(3), the default."""

GRACE: Final = 10.0
"""Seconds beyond the unit's own time-out, in which PID 1 ends the job itself."""

MAX_UNIT: Final = 255
"""Source: systemd.unit(5): the longest name of a unit."""

_FAILED: Final = 32
"""Source: mount(8), Exit status: mount failure."""

_KEPT: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_.")

_LOCAL: Final = re.compile("/(?!/)|[A-Z]+=")
"""A path or a tag such as UUID=; everything else is on a server."""

_ERRORS: Final[dict[str, tuple[type[AttemptError], str]]] = {
    f"{SYSTEMD}.NoSuchUnit": (MissingError, "it is gone"),
    f"{SYSTEMD}.UnitExists": (BusyError, "systemd has a unit of its own there; see fstab(5)"),
    f"{SYSTEMD}.TransactionIsDestructive": (BusyError, "the system is about to stop"),
    "org.freedesktop.DBus.Error.NoReply": (TimedOutError, "see that PID 1 answers"),
}


class SystemdMounter:
    """A Mounter: see system/mounting.py."""

    def __init__(self, bus: Bus, directory: Path, table: MountTable) -> None:
        """Mount where PID 1 does.

        Args:
            bus: PID 1's.
            directory: of the host, for what mount(8) says; it must stay as long as mounts do.
            table: of PID 1's mounts, whose ids are those that `unmount` takes.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._bus = bus
        self._directory = directory
        self._table = table
        self._owner = ""
        self._ended: dict[str, asyncio.Queue[tuple[str, str]]] = {}
        bus.listen(self._hear)

    async def mount(self, source: str, fstype: str, options: Sequence[str], place: Place) -> None:
        """See Mounter."""
        await prepare(source, place)
        await self._start(source, fstype, [*network_options(source), *options], place)

    async def bind(self, source: str, place: Place, *, read_only: bool) -> None:
        """See Mounter."""
        kept = await prepare_bind(source, place)
        await self._start(source, "none", ["bind", *kept, *(["ro"] if read_only else [])], place)

    async def unmount(self, place: Place, mount_id: int) -> None:
        """See Mounter."""
        self._confirm(place, mount_id)
        unit = unit_name(place.target)
        with suppress(MissingError), self._words(place) as words:  # no unit: nothing is mounted
            result = await self._job(unit, "StopUnit", "ss", unit, MODE)
            if result != "done":
                raise _explain(unit, result, words)
        await tidy(place)

    async def detach(self, place: Place) -> None:
        """See Mounter."""
        _check_text(place.target)
        unit = f"storaged-conn-detach-{secrets.token_hex(8)}.service"
        how = [*DETACH, "--no-canonicalize"]
        properties = {
            "Description": Variant("s", f"Detach {place.target}"),
            "Type": Variant("s", "oneshot"),
            "ExecStart": Variant("a(sasb)", [[UMOUNT, [UMOUNT, *how, "--", place.target], False]]),
            "TimeoutStartUSec": Variant("t", int(DEADLINE * 1e6)),
            "DefaultDependencies": Variant("b", value=False),
            "CollectMode": Variant("s", "inactive-or-failed"),
        }
        result = await self._transient(unit, properties)
        if result != "done":
            raise TroubleError(f"{place.target}: not detached ({result}); see the journal")

    def _confirm(self, place: Place, mount_id: int) -> None:
        """See that what is mounted there, if anything is, has this id."""
        self._table.refresh()
        mount = self._table.at(place.target)
        if mount and mount.id != mount_id:
            raise BusyError(f"{place.target}: something else is mounted there now")

    async def _start(self, source: str, fstype: str, options: Sequence[str], place: Place) -> None:
        unit = unit_name(place.target)
        properties = {
            "Description": Variant("s", f"Storage connection {source}"),
            "What": Variant("s", source),
            "Type": Variant("s", fstype),
            "Options": Variant("s", ",".join((*options, *FORCED))),
            "TimeoutUSec": Variant("t", int(DEADLINE * 1e6)),
            "StartLimitIntervalUSec": Variant("t", 0),  # how often is for us to say
            "CollectMode": Variant("s", "inactive-or-failed"),  # a failure is a state, not a unit
        }
        try:
            _check_text(source)
            with self._words(place) as words:
                properties["StandardErrorFile"] = Variant("s", str(words))
                result = await self._transient(unit, properties)
                if result != "done":
                    await prepare(source, place)  # it may have gone meanwhile, see mount_child.py
                    raise _explain(unit, result, words)
        except AttemptError:
            with suppress(AttemptError):
                await tidy(place)
            raise

    async def _transient(self, unit: str, properties: dict[str, Variant]) -> str:
        """Start a unit, whose name may be that of one that has failed."""
        with suppress(CallError):  # it mostly has not
            await self._call("ResetFailedUnit", "s", unit)
        settings = [[name, value] for name, value in properties.items()]
        return await self._job(
            unit, "StartTransientUnit", "ssa(sv)a(sa(sv))", unit, MODE, settings, []
        )

    async def _job(self, unit: str, member: str, signature: str, *body: object) -> str:
        """Have PID 1 do something to a unit.

        Returns:
            The job's result, when it has ended. Source: org.freedesktop.systemd1(5), JobRemoved.

        Raises:
            AttemptError: PID 1 does not want to, or takes too long.
        """
        ended = self._ended[unit] = asyncio.Queue()
        try:
            await self._subscribe()
            async with asyncio.timeout(DEADLINE + GRACE):
                (job,) = await self._call(member, signature, *body)
                while True:
                    one, result = await ended.get()
                    if one == job:
                        return result
        except TimeoutError:
            self._give_up(unit)
            raise TimedOutError(f"systemd does not end {unit}; see journalctl -u {unit}") from None
        except asyncio.CancelledError:
            self._give_up(unit)
            raise
        except CallError as error:
            raise _refusal(unit, error) from None
        except BusLostError as error:
            raise TroubleError(f"systemd cannot be asked: {error}") from None
        finally:
            del self._ended[unit]

    async def _subscribe(self) -> None:
        """Have PID 1 tell when jobs end; its name on the bus changes when it executes itself."""
        (owner,) = await self._bus.ask("GetNameOwner", "s", SYSTEMD)
        if owner != self._owner:
            await self._bus.ask("AddMatch", "s", RULE)
            with suppress(CallError):  # AlreadySubscribed
                await self._call("Subscribe")
            self._owner = owner

    async def _call(self, member: str, signature: str = "", *body: object) -> list[Any]:
        where = (SYSTEMD, PATH, MANAGER, member)
        return await self._bus.call(where, signature, body, timeout=CALL)

    def _give_up(self, unit: str) -> None:
        """Have PID 1 kill what it runs for a unit, and do not wait for it."""
        with suppress(BusLostError):
            self._bus.send_off((SYSTEMD, PATH, MANAGER, "StopUnit"), "ss", unit, MODE)

    def _hear(self, signal: Message) -> None:
        """Take the end of a job, from PID 1 alone: a match rule keeps nobody from writing to us."""
        if signal.text(Field.MEMBER) != "JobRemoved" or signal.text(Field.SENDER) != self._owner:
            return
        _, job, unit, result = signal.arguments()
        if unit in self._ended:
            self._ended[unit].put_nowait((job, result))

    @contextmanager
    def _words(self, place: Place) -> Iterator[Path]:
        """Give the file that takes what mount(8) and umount(8) say of a place, for as long."""
        words = self._directory / hashlib.sha256(place.target.encode()).hexdigest()[:16]
        words.unlink(missing_ok=True)
        try:
            yield words
        finally:
            words.unlink(missing_ok=True)


def network_options(source: str) -> list[str]:
    """Have what is on a server unmounted before the network goes.

    Source: systemd.mount(5), _netdev.
    """
    return [] if _LOCAL.match(source) else ["_netdev"]


def unit_name(target: str) -> str:
    """Give the name of the unit of a mount point, which must not have links in its path.

    Raises:
        RefusedError: it cannot have one.

    Source: systemd.unit(5), String Escaping for Inclusion in Unit Names.
    """
    _check_text(target)
    path = "/".join(part for part in target.split("/") if part)
    name = "".join(
        "-" if byte == ord("/")
        else chr(byte) if byte in _KEPT and not (place == 0 and byte == ord("."))
        else f"\\x{byte:02x}"
        for place, byte in enumerate(path.encode())
    )  # fmt: skip
    if len(name) + len(".mount") > MAX_UNIT:
        raise RefusedError(f"{target}: too long for systemd; choose a shorter mountpoint")
    return f"{name or '-'}.mount"


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedError(f"{text!a} is no UTF-8, which systemd wants; rename it") from None


def _explain(unit: str, result: str, words: Path) -> AttemptError:
    """Make an error of what mount(8) or umount(8) said, or of its silence."""
    try:
        said = words.read_text(errors="replace")[:OUTPUT_LIMIT]
    except OSError:
        said = ""
    if said:
        return explain(Result(_FAILED, "", said))
    return TroubleError(f"{unit} ended in silence ({result}); see journalctl -u {unit}")


def _refusal(unit: str, error: CallError) -> AttemptError:
    kind, advice = _ERRORS.get(error.name, (TroubleError, "see the journal"))
    return kind(f"{unit}: {error}; {advice}")
