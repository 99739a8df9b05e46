# SPDX-License-Identifier: LGPL-2.1-or-later
"""A TCP server that only accepts, for tests/netns.py: PORT CLOSE_AFTER.

It writes a line for all that happens: what, the monotonic time, and whose connection. A connection
is closed after CLOSE_AFTER seconds, where that is not 0.
"""

import os
import selectors
import socket
import sys
from time import monotonic

BACKLOG = 1024


def say(kind: str, at: float, peer: object) -> None:
    os.write(1, f"{kind} {at:.6f} {peer}\n".encode())


def main(port: int, close_after: float) -> None:
    began = monotonic()
    listener = socket.create_server(
        ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
    )
    say("listening", began, port)
    watched = selectors.DefaultSelector()
    watched.register(listener, selectors.EVENT_READ)
    closing: list[tuple[float, socket.socket, str]] = []
    while True:
        ready = watched.select(max(0, closing[0][0] - monotonic()) if closing else None)
        for key, _ in ready:
            if key.data is None:
                connection, (host, number, *_) = listener.accept()
                peer = f"{host}:{number}"
                say("accepted", monotonic(), peer)
                watched.register(connection, selectors.EVENT_READ, (connection, peer))
                if close_after:
                    closing.append((monotonic() + close_after, connection, peer))
                continue
            connection, peer = key.data
            end(watched, connection, peer)
            closing = [one for one in closing if one[1] is not connection]
        while closing and closing[0][0] <= monotonic():
            _, connection, peer = closing.pop(0)
            end(watched, connection, peer)


def end(watched: selectors.BaseSelector, connection: socket.socket, peer: str) -> None:
    watched.unregister(connection)
    connection.close()
    say("ended", monotonic(), peer)


main(int(sys.argv[1]), float(sys.argv[2]))
