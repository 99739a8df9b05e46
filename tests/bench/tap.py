# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sees attempts from outside of the service: by the first packet of each."""

import asyncio
import socket
from typing import Final, Self

from tests.live import DEADLINE
from tests.netns import INTERFACE, Namespace, address

ETH_P_ALL: Final = 3
ARP_REQUEST: Final = bytes.fromhex("08060001080006040001")
IPV4: Final = bytes.fromhex("080045")
IPPROTO_TCP: Final = 6
SYN: Final = 0x02
"""Source: packet(7); RFC 826 and RFC 894; RFC 791 section 3.1; RFC 9293 section 3.1."""


class Tap:
    """Sees what leaves the client for the server: questions for its address, and first packets."""

    def __init__(self, client: Namespace) -> None:
        with client.entered():
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(ETH_P_ALL))
            self._socket.bind((INTERFACE, ETH_P_ALL))
        self._seen: list[float] = []
        self._news = asyncio.Event()

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    async def sees(self, after: float) -> float:
        """Return the time of the first packet after a time."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._news.clear()
                for at in self._seen:
                    if at >= after:
                        return at
                await self._news.wait()

    def _read(self) -> None:
        try:
            data, sender = self._socket.recvfrom(2048)
        except OSError:  # the interface went down
            return
        if sender[2] == socket.PACKET_OUTGOING and _is_first(data):
            self._seen.append(asyncio.get_running_loop().time())
            self._news.set()


def _is_first(frame: bytes) -> bool:
    server = socket.inet_aton(address())
    if frame[12:22] == ARP_REQUEST:
        return frame[38:42] == server
    is_tcp = frame[12:15] == IPV4 and frame[23] == IPPROTO_TCP
    return is_tcp and frame[30:34] == server and frame[47] == SYN
