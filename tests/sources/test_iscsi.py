# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct

import pytest
from pyroute2.netlink import NETLINK_ISCSI, NETLINK_USERSOCK

from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look
from storaged_conn.sources.iscsi import HOSTS, ISCSID, SETTLE, IscsiSource
from storaged_conn.system.iscsi import Sessions
from tests.sources.looks import Looks

NLMSGHDR = Struct("=IHHII")
UEVENT = Struct("=IIQ24sIIII")
"""struct iscsi_uevent of include/scsi/iscsi_if.h: 56 bytes, with the union `r` at 40."""

HANDLE = 0xFFFFFFFFC0A81234

PDU = bytes(range(48))

FLOOD = 2000


def message(kind: int, *words: int, nlmsg_type: int = 0, pdu: bytes = b"") -> bytes:
    """Write a message as scsi_transport_iscsi.c does."""
    body = UEVENT.pack(kind, 0, HANDLE, b"", *(*words, 0, 0, 0, 0)[:4]) + pdu
    return NLMSGHDR.pack(NLMSGHDR.size + len(body), nlmsg_type, 0, 0, 0) + body


CONN_ERROR = message(102, 7, 0, 1020)

ABOUT_SESSIONS = {
    "session1": message(101, 1, 0, 0x9000, 0xFFFF, nlmsg_type=101, pdu=PDU),  # RECV_PDU
    "session2": message(102, 2, 0, 1011),  # CONN_ERROR
    "session3": message(104, 34, 3),  # DESTROY_SESSION: the host comes first
    "session4": message(105, 4, 34),  # UNBIND_SESSION
    "session5": message(106, 5, 34),  # CREATE_SESSION
    "session6": message(109, 6, 0, 3),  # CONN_LOGIN_STATE
}

NO_SESSION = (0, 11, 103, 107, 108, 110, 111, 2**32 - 1)


class Changing(Sessions):
    """Finds something new about a session whenever it is read, and names targets as sessions."""

    def refresh(self, name: str) -> None:
        self.changed(name)


class CountingSource(IscsiSource):
    """Counts how often the loop calls it."""

    calls = 0

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        self.called = asyncio.Event()
        super().start(look, resync)

    def _read(self) -> None:
        self.calls += 1
        super()._read()
        self.called.set()


@pytest.fixture
def kernel() -> Iterator[socket.socket]:
    """Stand in for the kernel, in the family that is for that."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK) as kernel:
        kernel.bind((0, 0))
        yield kernel


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
async def source(kernel: socket.socket, looks: Looks, tmp_path: Path) -> AsyncIterator[IscsiSource]:
    source = source_of(kernel, tmp_path)
    source.start(looks, looks.resync)
    yield source
    source.close()
    source.close()


def source_of(kernel: socket.socket, hosts: Path) -> CountingSource:
    port, _ = kernel.getsockname()
    return CountingSource(Changing(hosts), family=NETLINK_USERSOCK, sender=port, hosts=hosts)


def say(kernel: socket.socket, *messages: bytes) -> None:
    for one in messages:
        with suppress(ConnectionRefusedError):  # it goes to the group, and nobody has port 0
            kernel.sendto(one, (0, 1 << (ISCSID - 1)))


def topics(looks: Looks) -> list[Topic]:
    assert not any(hint for _, hint in looks.heard), "a session is what an attempt makes"
    return [topic for topic, _ in looks.heard]


def test_the_messages_are_as_long_as_the_kernels() -> None:
    assert len(CONN_ERROR) == 72
    assert len(ABOUT_SESSIONS["session1"]) == 72 + len(PDU)


async def test_every_message_about_a_session_has_it_looked_at_once_and_again(
    source: CountingSource, kernel: socket.socket, looks: Looks
) -> None:
    say(kernel, *ABOUT_SESSIONS.values())
    await looks.until(lambda: len(looks.heard) == len(ABOUT_SESSIONS) * len(SETTLE))
    assert topics(looks) == [Topic("iscsi", session) for session in ABOUT_SESSIONS] * len(SETTLE)
    assert source.calls == 1


async def test_what_is_about_no_session_is_passed_over(
    source: CountingSource, kernel: socket.socket, looks: Looks
) -> None:
    say(kernel, *(message(kind, 1, 2, 3, 4) for kind in NO_SESSION), CONN_ERROR)
    await looks.until(lambda: looks.heard)
    assert topics(looks) == [Topic("iscsi", "session7")]
    assert source.calls == 1


async def test_a_burst_about_one_session_is_looked_at_as_often_as_one_message(
    source: CountingSource, kernel: socket.socket, looks: Looks
) -> None:
    say(kernel, *[CONN_ERROR] * 100, message(102, 8))
    await looks.until(lambda: len(looks.heard) == 2 * len(SETTLE))
    assert topics(looks).count(Topic("iscsi", "session8")) == len(SETTLE)
    assert source.calls == 2  # 101 messages, 64 at a time


async def test_only_the_kernel_is_believed(
    source: CountingSource, kernel: socket.socket, looks: Looks
) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK) as other:
        other.bind((0, 0))
        say(other, message(102, 8))
    await source.called.wait()
    say(kernel, CONN_ERROR)
    await looks.until(lambda: looks.heard)
    assert topics(looks) == [Topic("iscsi", "session7")]


async def test_what_cannot_be_read_is_a_resync(
    source: CountingSource, kernel: socket.socket, looks: Looks
) -> None:
    say(kernel, (16).to_bytes(4, "little") + bytes(12))
    await looks.until(lambda: looks.resyncs)
    assert not looks.heard


async def test_an_overflow_is_a_resync_and_the_messages_after_it_are_heard(
    source: CountingSource, kernel: socket.socket, looks: Looks
) -> None:
    assert source._socket is not None
    source._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    say(kernel, *[CONN_ERROR] * FLOOD)
    await looks.until(lambda: (looks.resyncs, len(looks.heard)) == (len(SETTLE), len(SETTLE)))
    assert source.calls == 1
    looks.heard.clear()
    say(kernel, message(102, 8))
    await looks.until(lambda: len(looks.heard) == len(SETTLE))
    assert topics(looks) == [Topic("iscsi", "session8")] * len(SETTLE)
    assert source.calls == 2
    assert looks.resyncs == len(SETTLE)


async def test_nothing_is_opened_before_the_kernel_can_do_iscsi_and_then_all_is_looked_at(
    kernel: socket.socket, looks: Looks, tmp_path: Path
) -> None:
    hosts = tmp_path / "iscsi_host"
    source = source_of(kernel, hosts)
    source.open()  # too early
    source.start(looks, looks.resync)
    source.open()
    assert source._socket is None
    hosts.mkdir()
    source.open()
    source.open()
    say(kernel, CONN_ERROR)
    await looks.until(lambda: (looks.resyncs, len(looks.heard)) == (len(SETTLE), len(SETTLE)))
    source.close()


async def test_a_kernel_without_iscsi_is_asked_once_and_the_journal_told(
    looks: Looks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(OSError, match="Protocol not supported"):
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 31).close()
    source = IscsiSource(Sessions(tmp_path), family=31, hosts=tmp_path)
    source.start(looks, looks.resync)
    source.open()
    source.close()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "the kernel's iSCSI messages cannot be heard: Protocol not supported"
    assert looks.resyncs == 0


async def test_the_source_is_silent_on_a_host_without_iscsi(
    looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = IscsiSource(Sessions())
    source.start(looks, looks.resync)
    if source._socket:
        assert HOSTS.exists()
        assert source._socket.proto == NETLINK_ISCSI
    source.close()
    assert bool(caplog.records) <= HOSTS.exists()
