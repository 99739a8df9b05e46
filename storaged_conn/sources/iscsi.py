# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells when an iSCSI session fails, recovers, comes or goes, from the kernel's own multicasts.

udev tells of sessions that come and go, and nothing of one that fails. The kernel tells iscsid that
by netlink, and whoever else joins that group hears it too. A message names a session; its state is
read from /sys/class/iscsi_session, which follows the message a little later.

pyroute2 decodes the messages. Its socket is not used: it must be reopened after every overflow, its
queue has no bound, and it is opened by a coroutine (kernel-events.md 2.2); a socket of our own gets
ENOBUFS once and goes on.

To open a socket of this family makes the kernel load scsi_transport_iscsi, which a host without
iSCSI has no use for; so it is opened when that is there. Source: net/netlink/af_netlink.c,
netlink_create.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyroute2.netlink import NETLINK_ADD_MEMBERSHIP, NETLINK_ISCSI, SOL_NETLINK, nlmsg
from pyroute2.netlink.marshal import Marshal

from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look, Source
from storaged_conn.system.iscsi import Sessions

logger = logging.getLogger(__name__)

KIND: Final = "iscsi"
"""Topics of this kind are named as targets are: by the iqn, whatever the portal."""

HOSTS: Final = Path("/sys/class/iscsi_host")
"""Is there once scsi_transport_iscsi is. Source: drivers/scsi/scsi_transport_iscsi.c,
iscsi_transport_init."""

TRANSPORTS: Final = "iscsi_transport"
"""The subsystem whose first device udev tells of when iSCSI comes into use after our start."""

ISCSID: Final = 1
"""The group of the messages to iscsid. Source: include/scsi/iscsi_if.h, ISCSI_NL_GRP_ISCSID."""

KERNEL: Final = 0
"""The port that nobody else has. Source: netlink(7), nl_pid."""

SESSION_AT: Final = {101: 0, 102: 0, 104: 1, 105: 0, 106: 0, 109: 0}
"""The messages about a session, and which word of the union `r` is its number: RECV_PDU,
CONN_ERROR, DESTROY_SESSION (where the host comes first), UNBIND_SESSION, CREATE_SESSION and
CONN_LOGIN_STATE. Source: include/scsi/iscsi_if.h, enum iscsi_uevent_e and struct iscsi_uevent."""

SETTLE: Final = (0.02, 0.06, 0.5)
"""Seconds from a message to the looks. Source: kernel-events.md 1: sysfs followed 10 ms after a
CONN_ERROR and 20 ms after the PDU of a login; the last look is for a machine that is slow."""

BUFFER: Final = 1024 * 1024
"""Bytes: more than 1000 messages, so all sessions of a host may fail at once."""

ALL: Final = ""
"""Stands for all sessions: messages were lost."""

SO_RCVBUFFORCE: Final = 33
"""Source: socket(7); the module socket does not have it."""

BATCH: Final = 64
"""Messages taken in one turn of the loop: 2 to 3 ms."""

MAX_MESSAGE: Final = 64 * 1024
"""Bytes. Source: a PDU of a login is 8 KiB at most, RFC 7143 section 13.12."""


class IscsiMessage(nlmsg):
    """struct iscsi_uevent of include/scsi/iscsi_if.h, for what the kernel sends."""

    nla_map = ()
    fields = (
        ("type", "I"),
        ("iferror", "I"),
        ("transport_handle", "Q"),
        ("u", "24s"),
        ("r0", "I"),
        ("r1", "I"),
        ("r2", "I"),
        ("r3", "I"),
    )


class IscsiMarshal(Marshal):
    """Goes by the payload's first word: the type in the header is 0 in most messages."""

    key_format = "I"
    key_offset = 16
    default_message_class = IscsiMessage
    error_type = -1


class IscsiSource(Source):
    """Has a session looked at when the kernel has news about it.

    No look is a hint: a session is what an attempt makes, and the messages may be the echo of one.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        family: int = NETLINK_ISCSI,
        sender: int = KERNEL,
        hosts: Path = HOSTS,
    ) -> None:
        """Nothing is watched before `start`.

        Args:
            sessions: kept up to date here.
            family: of netlink, another in tests.
            sender: the port of whom alone is believed, another in tests.
            hosts: is there once the kernel can do iSCSI.
        """
        self._table = sessions
        self._family = family
        self._sender = sender
        self._hosts = hosts
        self._look: Look | None = None
        self._resync: Callable[[], None] | None = None
        self._socket: socket.socket | None = None
        self._timers: dict[tuple[str, float], asyncio.TimerHandle] = {}
        self._refused = False
        self._marshal = IscsiMarshal()

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        """See Source."""
        self._look, self._resync = look, resync
        self._table.changed = self._look_at
        self._open()

    def hear(self, session: str) -> None:
        """Learn from elsewhere that there is news about a session, which sysfs shows by now."""
        if self._look:
            self._table.refresh(session)

    def open(self, transport: str = "") -> None:
        """Begin to listen if the kernel can do iSCSI by now; to be called when it may have come.

        A kernel that refuses is asked once, and the journal told.
        """
        if self._look and not self._socket and self._open():
            self._soon(ALL)  # what may have happened before

    def _open(self) -> bool:
        if self._refused or not self._hosts.exists():
            return False
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, self._family)
            self._join(self._socket)
        except OSError as error:
            self._refused = True
            self.close()
            logger.info("the kernel's iSCSI messages cannot be heard: %s", error.strerror)
            return False
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        return True

    def close(self) -> None:
        """See Source."""
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def watch(self, topic: Topic) -> None:
        """See Source; all sessions are watched anyway."""

    def unwatch(self, topic: Topic) -> None:
        """See Source."""

    @staticmethod
    def _join(opened: socket.socket) -> None:
        with suppress(PermissionError):  # not root: as much as the system gives
            opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        opened.bind((0, 0))
        opened.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, ISCSID)

    def _read(self) -> None:
        assert self._socket is not None
        for _ in range(BATCH):
            try:
                data, (sender, _) = self._socket.recvfrom(MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._soon(ALL)
                continue
            if sender == self._sender:
                for session in self._sessions(data):
                    self._soon(session)

    def _sessions(self, data: bytes) -> list[str]:
        """Name those that a message is about: all, where it cannot be read."""
        try:
            read = [(SESSION_AT.get(one["type"]), one) for one in self._marshal.parse(data)]
            return [f"session{one[f'r{word}']}" for word, one in read if word is not None]
        except Exception:  # noqa: BLE001  # pyroute2 lets out what it comes upon, such as KeyError
            return [ALL]

    def _soon(self, session: str) -> None:
        loop = asyncio.get_running_loop()
        for delay in SETTLE:
            key = (session, delay)
            if key not in self._timers:
                self._timers[key] = loop.call_later(delay, self._tell, key)

    def _tell(self, key: tuple[str, float]) -> None:
        assert self._resync is not None
        del self._timers[key]
        session, _ = key
        if session == ALL:
            for name in tuple(self._table.all()):
                self._table.refresh(name)
            self._resync()
        else:
            self._table.refresh(session)

    def _look_at(self, iqn: str) -> None:
        """Have all that is about a target looked at, since a name of the kernel's is nobody's."""
        if self._look:
            self._look(Topic(KIND, iqn), hint=False)
