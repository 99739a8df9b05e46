# SPDX-License-Identifier: LGPL-2.1-or-later
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged_conn.system.notify import notify, watchdog_interval


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager that listens at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(0)
        yield listener


def test_a_message_reaches_the_service_manager(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    notify("READY=1\nSTATUS=2 connected, ü")
    assert manager.recv(4096) == "READY=1\nSTATUS=2 connected, ü".encode()


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0storaged-conn-test-{os.getpid()}")
        listener.settimeout(0)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@storaged-conn-test-{os.getpid()}")
        notify("STOPPING=1")
        assert listener.recv(4096) == b"STOPPING=1"


def test_text_that_cannot_be_encoded_is_sent_all_the_same(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    notify("STATUS=\udcff")
    assert manager.recv(4096) == b"STATUS=?"


def test_without_a_service_manager_nothing_is_sent(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


@pytest.mark.parametrize("path", ["", "/nowhere/notify", "@nobody", "/" + "x" * 200, "vsock:2:1"])
def test_a_service_manager_that_is_not_there_does_no_harm(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify("READY=1")
    assert os.environ["NOTIFY_SOCKET"] == path


def test_a_service_manager_that_does_not_read_is_not_waited_for(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    for _ in range(2000):  # more than any queue holds; source: unix(7), max_dgram_qlen
        notify("WATCHDOG=1")
    assert manager.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", "", 15.0),
        ("30000000", str(os.getpid()), 15.0),
        ("1", "", 0.0000005),
        ("30000000", "1", None),
        ("30000000", "x", None),
        ("0", "", None),
        ("-1", "", None),
        ("soon", "", None),
        ("", "", None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_time(
    usec: str, pid: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_interval() == seconds


def test_without_a_watchdog_there_is_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_interval() is None
