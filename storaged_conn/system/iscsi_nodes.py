# SPDX-License-Identifier: LGPL-2.1-or-later
"""The node records of open-iscsi: what iscsid logs in with, and where its secrets are.

`iscsiadm -o update -v PASSWORD` would show a secret to everybody who looks at /proc. iscsiadm has
no other way to take one, so the record is written here, as iscsiadm would have written it: beneath
the lock that it takes, for root alone, complete in one write. A first line says that it is ours and
what it is for; iscsiadm takes it for a comment, and keeps it until somebody changes the record,
which is nobody's then but theirs.

Source: open-iscsi usr/idbm.c, idbm_lock, idbm_rec_read and idbm_recinfo_config.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from storaged_conn.core.secret import Secret
from storaged_conn.errors import TroubleError, UnusableError
from storaged_conn.system.iscsi import Where
from storaged_conn.system.iscsiadm import Iscsiadm

LOCKS: Final = Path("/run/lock/iscsi")
"""Source: open-iscsi usr/initiator.h, LOCK_DIR."""

CONFIG: Final = Path("/etc/iscsi")

POLL: Final = 0.01
PATIENCE: Final = 30.0
"""Seconds between two tries for the lock, and for all of them. Source: open-iscsi usr/idbm.c,
idbm_lock: there is nothing to wait for but that the file is gone."""

MARK: Final = "# storaged-conn "

MAX_VALUE: Final = 223
"""Bytes of a name, and what iscsid takes of any other value. Source: RFC 3720 section 5.1;
open-iscsi usr/idbm.h, VALUE_MAXVAL."""

BUILT_IN: Final = {"default": "tcp", "iser": "iser"}
"""The iface records that are no files, and their transports. Source: open-iscsi usr/iface.c,
iface_setup_defaults and iface_link_ifaces."""

_FIRST: Final = {"node.session.auth.authmethod": "None"}
"""What even iscsid.conf may change."""

AUTH: Final = "node.session.auth."
ALGORITHMS: Final = f"{AUTH}chap_algs"
"""What the host proves to any target, and the one line of it that is no credential. Source:
iscsid.conf, CHAP Settings."""

Settings = Mapping[str, str | Secret]
"""The lines of a record: a name, such as node.session.auth.username, and its value."""


class Nodes:
    """The records, in a place that only iscsiadm knows."""

    def __init__(self, iscsiadm: Iscsiadm, *, config: Path = CONFIG, locks: Path = LOCKS) -> None:
        """Take away a lock that a kill has left; nothing else is looked for yet.

        iscsiadm would wait for it longer than we do for iscsiadm.

        Args:
            iscsiadm: knows where they are.
            config: where iscsid.conf is.
            locks: where the lock is.
        """
        self._iscsiadm = iscsiadm
        self._config = config
        self._locks = locks
        self._turn = asyncio.Lock()
        self._forget_lock()

    async def write(
        self, uri: str, where: Where, portal: int, settings: Settings, *, trusted: bool = False
    ) -> bool:
        """Make a record, unless somebody else has one there that says the same.

        Args:
            uri: what it is for.
            where: which record.
            portal: the target portal group tag.
            settings: what it has to say.
            trusted: see defaults.

        Returns:
            Whether it is ours.

        Raises:
            UnusableError: somebody else's says something else.
            TroubleError: it could not be written.
        """
        root = await self._iscsiadm.database()
        path = _path(root, where, portal)
        defaults = self.defaults(trusted=trusted)
        common = _FIRST | defaults | self._interface(root, where.interface)
        lines = {**common, **_own(where, portal), **settings}
        try:
            async with self._locked():
                before = _read(path)
                if before and not before.startswith(MARK):
                    _check_agrees(path, before, settings)
                    return False
                _write(path, f"{MARK}{uri}\n{_text(lines)}")
                return True
        except OSError as error:
            raise TroubleError(f"{path}: {error.strerror}; see this directory") from None

    async def remove(self, where: Where) -> None:
        """Remove the records of a session, if they are ours.

        Raises:
            TroubleError: they are still there.
        """
        root = await self._iscsiadm.database()
        try:
            async with self._locked():
                for path in _all_of(root, where):
                    if _read(path).startswith(MARK):
                        path.unlink(missing_ok=True)
                    for directory in (path.parent, path.parent.parent):
                        with suppress(OSError):  # others have records there
                            directory.rmdir()
        except OSError as error:
            raise TroubleError(f"{root}: {error.strerror}; see this directory") from None

    async def find(self, iqn: str) -> dict[Where, str]:
        """Give the sessions with a target that have a record of ours, and what each is for."""
        root = await self._iscsiadm.database()
        found = {}
        for path in sorted((root / "nodes" / iqn).glob("*/*")):
            text = _read(path)
            where = _where(iqn, path)
            if where and text.startswith(MARK):
                found[where] = text.partition("\n")[0].removeprefix(MARK)
        return found

    async def initiator(self, interface: str) -> str:
        """Give the name of this host on an interface.

        Raises:
            UnusableError: there is no such interface, or nobody has given the host a name.
        """
        lines = self._interface(await self._iscsiadm.database(), interface)
        names = dict(_parse(_read(self._config / "initiatorname.iscsi")))
        name = lines.get("iface.initiatorname") or names.get("InitiatorName")
        if not name:
            raise UnusableError("this host has no initiator name; see iscsi-iname(8)")
        return name

    def defaults(self, *, trusted: bool) -> dict[str, str]:
        """Give what the administrator has set for all new records.

        Args:
            trusted: root names the target. Anybody else could have the host prove what it knows to
                a target of his own, so the host's credentials are left out.
        """
        return _defaults(_read(self._config / "iscsid.conf"), trusted=trusted)

    @staticmethod
    def _interface(root: Path, name: str) -> dict[str, str]:
        """Copy an iface record, as iscsiadm does.

        Raises:
            UnusableError: there is none.
        """
        if name in BUILT_IN:
            return {"iface.iscsi_ifacename": name, "iface.transport_name": BUILT_IN[name]}
        lines = _parse(_read(root / "ifaces" / name))
        found = {key: value for key, value in lines if key.startswith("iface.")}
        if not found:
            raise UnusableError(f"there is no iface record {name!r}; see iscsiadm(8)")
        return found

    def _forget_lock(self) -> None:
        own, lock = self._locks / "storaged-conn", self._locks / "lock.write"
        with suppress(FileNotFoundError):
            if lock.samefile(own):
                lock.unlink()

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """Take the lock of open-iscsi, which is that a file has this name.

        What it is linked to is ours: so a lock that a kill has left is known.

        Raises:
            TroubleError: somebody else has had it for too long.
        """
        async with self._turn:
            self._locks.mkdir(mode=0o770, parents=True, exist_ok=True)
            own, lock = self._locks / "storaged-conn", self._locks / "lock.write"
            own.touch(mode=0o600)
            await _link(own, lock)
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)


async def _link(own: Path, lock: Path) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(FileExistsError):
                    os.link(own, lock)
                    return
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise TroubleError(f"{lock} is in the way; remove it if no iscsiadm runs") from None


def _path(root: Path, where: Where, portal: int) -> Path:
    """Say where a record is, or where iscsiadm has put one that was made without a group."""
    old = root / "nodes" / where.iqn / f"{where.address},{where.port}"
    return old if old.exists() else old.with_name(f"{old.name},{portal}") / where.interface


def _all_of(root: Path, where: Where) -> Iterator[Path]:
    target = root / "nodes" / where.iqn
    if target.is_dir():
        for directory in sorted(target.iterdir()):
            path = directory / where.interface
            if directory.name.startswith(f"{where.address},{where.port},") and path.exists():
                yield path


def _where(iqn: str, path: Path) -> Where | None:
    address, _, rest = path.parent.name.partition(",")
    port = rest.partition(",")[0]
    return Where(iqn, address, int(port), path.name) if port.isdecimal() else None


def _own(where: Where, portal: int) -> dict[str, str]:
    """Give what is as this service needs it.

    A login is not tried again by iscsid: when to try again is decided elsewhere, and a wrong
    password must not be said twice. Source: open-iscsi usr/initiator.c, initial_login_retry_max.
    """
    return {
        "node.name": where.iqn,
        "node.tpgt": str(portal),
        "node.startup": "manual",
        "node.conn[0].startup": "manual",
        "node.conn[0].address": where.address,
        "node.conn[0].port": str(where.port),
        "node.discovery_type": "static",
        "node.session.nr_sessions": "1",
        "node.session.initial_login_retry_max": "1",
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _write(path: Path, text: str) -> None:
    for directory in (path.parent.parent.parent, path.parent.parent, path.parent):
        directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text.encode(errors="surrogateescape"))


def _parse(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith("#") and value.strip():
            yield key.strip(), value.strip()


def _defaults(text: str, *, trusted: bool) -> dict[str, str]:
    return {
        key: value
        for key, value in _parse(text)
        if key.startswith("node.") and (trusted or key == ALGORITHMS or not key.startswith(AUTH))
    }


def _text(settings: Settings) -> str:
    return "".join(f"{key} = {_reveal(value)}\n" for key, value in settings.items())


def _reveal(value: str | Secret) -> str:
    return value.reveal().decode() if isinstance(value, Secret) else value


def _check_agrees(path: Path, text: str, settings: Settings) -> None:
    there = dict(_parse(text))
    for key, value in settings.items():
        if there.get(key, "None") != _reveal(value):
            raise UnusableError(
                f"{path} is somebody else's, with another {key}; have iscsiadm(8) delete it"
            )
