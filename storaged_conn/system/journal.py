# SPDX-License-Identifier: LGPL-2.1-or-later
"""The log: to journald with fields, by its socket and without libsystemd, or to standard error."""

import logging
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TextIO

SOCKET: Final = Path("/run/systemd/journal/socket")
"""Source: systemd-journald.service(8)."""

FIELDS: Final = "journal"
"""The attribute of a log record that holds its own fields, pairs of a name and a value."""

Fields = Iterable[tuple[str, str]]

MESSAGE_IDS: Final = {
    "connected": "ba7696fcae99423dbfe86bb22ed10b93",
    "connecting": "ae6bea5ed3e74b9e811e1d16d40bf8b3",
    "unresponsive": "de437987b6a34662962700db46960d04",
    "waiting": "bae09559b600493c9631615f48890763",
    "failed": "39ca01da6db84d84a1e8374b10ed8d48",
    "disconnecting": "ad545cee642f464b99810c28be5c03f1",
}
"""Of each state's news, the same as in systemd/storaged-conn.catalog; never reuse or change one."""

_PRIORITIES: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
"""Source: sd-daemon(3), SD_NOTICE and others."""


class StreamFormatter(logging.Formatter):
    """Gives the journal its priorities where standard error is all that it hears of us."""

    def format(self, record: logging.LogRecord) -> str:
        """Begin every line with the priority. Source: sd-daemon(3)."""
        prefix = f"<{_priority(record)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class JournalHandler(logging.StreamHandler[TextIO]):
    """Sends to journald what it takes at once; all else goes to a stream, and nothing is lost."""

    def __init__(self, stream: TextIO, path: Path = SOCKET) -> None:
        """Nothing has to listen at the path."""
        super().__init__(stream)
        self.setFormatter(StreamFormatter())
        self._path = path
        self._plain = logging.Formatter()
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record. A very long one, too, takes the stream, and loses its own fields."""
        fields = [
            ("MESSAGE", self._plain.format(record)),
            ("PRIORITY", str(_priority(record))),
            ("SYSLOG_IDENTIFIER", "storaged-connd"),
            *record.__dict__.get(FIELDS, ()),
        ]
        try:
            self._sender.sendto(encode(fields), str(self._path))
        except OSError:
            super().emit(record)

    def close(self) -> None:
        """Let go of the socket."""
        self._sender.close()
        super().close()


def encode(fields: Fields) -> bytes:
    """Write fields as journald reads them; a name may come several times.

    Source: systemd's docs/JOURNAL_NATIVE_PROTOCOL.md: a value may have a newline in it if its
    length is before it, as 64 bits, little endian.
    """
    return b"".join(_encode(name, value.encode(errors="replace")) for name, value in fields)


def _encode(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)
    return b"%s=%s\n" % (name.encode(), value)


def _priority(record: logging.LogRecord) -> int:
    return _PRIORITIES.get(record.levelname, _PRIORITIES["INFO"])
