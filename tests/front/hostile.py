# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client without manners, in a process of its own: `python -m tests.front.hostile ADDRESS WHAT`.

It writes `ready` when it is on the bus, does what it was told when it reads a line, and writes what
came of it. As root it connects as nobody, after it has imported what only root may be able to read.
"""

import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from struct import pack
from typing import Final

from dbus_next.signature import Variant

from storaged_conn.bus import wire
from storaged_conn.bus.wire import Field, Flag, Kind, Message
from storaged_conn.names import DBUS, DBUS_PATH, MANAGER, PEER, PROPERTIES, ROOT, SERVICE
from tests.bus.wires import raw_call

NOBODY: Final = 65534
"""Source: Debian Policy, 9.2.2."""

SASL: Final = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"
SASL_ANSWERS: Final = 2

CROWD: Final = 8
"""Connections that never read: with what waits for them, more than the service may queue."""

MAX_REPLIES: Final = 128
"""Calls of one connection that dbus-daemon lets wait for replies. Source: dbus-daemon(1)."""

serials = count(1)


class Connection:
    """A connection that writes and reads when it likes."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.crowd: list[Connection] = []
        path = address.partition("=")[2].partition(",")[0]
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.sendall(SASL)
        self.read = self.socket.makefile("rb").read
        for _ in range(SASL_ANSWERS):
            while self.read(1) != b"\n":
                pass
        self.send(call(DBUS_PATH, DBUS, "Hello", destination=DBUS))
        self.answer()

    def send(self, message: Message) -> None:
        self.socket.sendall(wire.header(message) + message.body)

    def answer(self) -> str:
        """Wait for an answer; returns an error's name, or nothing."""
        while True:
            head = self.read(wire.FIXED)
            start, total = wire.message_size(head, 0)
            rest = self.read(total - wire.FIXED)
            message = wire.parse(head + rest[: start - wire.FIXED], b"")
            if message.kind in {Kind.RETURN, Kind.ERROR}:
                return message.text(Field.ERROR_NAME)


def call(
    path: str,
    interface: str,
    member: str,
    *,
    destination: str = SERVICE,
    signature: str = "",
    body: bytes = b"",
    flags: int = 0,
) -> Message:
    fields: dict[int, object] = {
        Field.PATH: path,
        Field.INTERFACE: interface,
        Field.MEMBER: member,
        Field.DESTINATION: destination,
    }
    if signature:
        fields[Field.SIGNATURE] = signature
    return Message(Kind.CALL, flags, next(serials), fields, body)


def listings(number: int, flags: int = 0) -> bytes:
    calls = (call(ROOT, MANAGER, "List", flags=flags) for _ in range(number))
    return b"".join(map(wire.header, calls))


def managings(number: int) -> bytes:
    body = wire.marshal("ssa{sv}", ("simulated:mine", "mine", {}))
    calls = (call(ROOT, MANAGER, "Manage", signature="ssa{sv}", body=body) for _ in range(number))
    return b"".join(wire.header(one) + body for one in calls)


def flood(connection: Connection, number: int) -> object:
    """Call without wanting replies, as fast as the bus takes it, and then once with a reply."""
    connection.socket.sendall(listings(number, Flag.NO_REPLY_EXPECTED))
    connection.send(call(ROOT, PEER, "Ping"))
    return connection.answer()


def ask(connection: Connection, number: int, calls: Callable[[int], bytes] = listings) -> object:
    """Have as many calls wait for answers as the bus allows, and count the answers by name."""
    answers: Counter[str] = Counter()
    for _ in range(0, number, MAX_REPLIES):
        connection.socket.sendall(calls(MAX_REPLIES))
        answers.update(connection.answer() for _ in range(MAX_REPLIES))
    return answers


def beg(connection: Connection, number: int) -> object:
    """Call what only root may."""
    return ask(connection, number, managings)


def unknown_field(connection: Connection, number: int) -> object:
    """Send a header field that nobody knows."""
    fields = [(Field.PATH, Variant("o", ROOT)), (Field.MEMBER, Variant("s", "Ping"))]
    fields += [(Field.INTERFACE, Variant("s", PEER)), (Field.DESTINATION, Variant("s", SERVICE))]
    connection.socket.sendall(raw_call([*fields, (number, Variant("s", "x"))]))
    connection.send(call(ROOT, PEER, "Ping"))
    return connection.answer()


def signatures(connection: Connection, number: int) -> object:
    """Set a property to variants, each of another type, the longest that there are."""
    return Counter(setting(connection, body) for body in bodies(number))


def setting(connection: Connection, body: bytes) -> str:
    connection.send(call(ROOT, PROPERTIES, "Set", signature="ssv", body=body))
    return connection.answer()


def bodies(number: int) -> Iterator[bytes]:
    """Pack as many types into each call as everybody may send."""
    for first in range(0, number, 10):
        inner = bytearray()
        for serial in range(first, first + 10):
            name = f"a({''.join('yb'[serial >> bit & 1] for bit in range(20)) * 12})".encode()
            inner += bytes((len(name),)) + name + b"\0"
            inner += bytes(-len(inner) % 4) + bytes(4)
            inner += bytes(-len(inner) % 8)
        yield property_of("av", bytes(4) + inner, len(inner))


def property_of(signature: str, value: bytes, size: int) -> bytes:
    """Marshal Version of the manager and a variant whose value is an array at a multiple of 8."""
    body = wire.marshal("ss", [MANAGER, "Version"])
    body += bytes((len(signature),)) + signature.encode() + b"\0"
    body += bytes(-(len(body) + 4) % 8)
    return body + pack("<I", size) + value[4:]


def large(connection: Connection, number: int) -> object:
    """Send an array of so many variants in one call."""
    values = b"\1y\0\5" * number
    body = pack("<I", len(values)) + values
    connection.send(call(ROOT, MANAGER, "Large", signature="av", body=body))
    return connection.answer()


def deaf(connection: Connection, number: int) -> object:
    """Ask on many connections, and never read an answer there, until nobody is answered any more.

    Returns:
        Whether it came to that.
    """
    crowd = connection.crowd = [Connection(connection.address) for _ in range(CROWD)]
    connection.socket.settimeout(1)
    stalled = False
    with suppress(TimeoutError):
        for _ in range(number // CROWD):
            stalled = True
            for one in crowd:
                one.socket.sendall(listings(1))
            connection.send(call(ROOT, PEER, "Ping"))
            connection.answer()
            stalled = False
    for one in crowd:  # and then as much as may wait
        one.socket.sendall(listings(MAX_REPLIES))
    return stalled


def main(address: str, what: str, number: int) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    acts: dict[str, Callable[[Connection, int], object]] = {
        act.__name__: act for act in (flood, ask, beg, unknown_field, signatures, large, deaf)
    }
    connection = Connection(address)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while sys.stdin.readline():
        sys.stdout.write(json.dumps(acts[what](connection, number)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
