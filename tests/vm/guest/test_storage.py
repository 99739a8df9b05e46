# SPDX-License-Identifier: LGPL-2.1-or-later
"""What storage.py plays is what NFS clients meet: with mount(8) alone, without the service."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.vm.guest.storage import NFS, Server
from tests.vm.guest.units import tool

SILENT: Final = 2.0
"""Seconds without an answer, where one takes milliseconds."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        (server.export("/export") / "file").write_text("first")
        (server.export("/srv/with é") / "file").write_text("second")
        server.start()
        yield server


@contextmanager
def mounted(source: str, place: Path, options: str) -> Iterator[Path]:
    place.mkdir()
    tool("mount", "-t", "nfs", "-o", f"soft,timeo=50,retrans=2,retry=0,{options}", source, place)
    try:
        yield place
    finally:
        tool("umount", place)


def knock(server: Server) -> None:
    """Connect to its port.

    Raises:
        OSError: it was refused, or nobody answered.
    """
    socket.create_connection((server.address, NFS), SILENT).close()


@pytest.mark.parametrize("version", ["3", "4.0", "4.1", "4.2"])
def test_mount_reads_and_writes_files(server: Server, tmp_path: Path, version: str) -> None:
    with mounted(f"{server.address}:/export", tmp_path / "a", f"vers={version}") as place:
        assert (place / "file").read_text() == "first"
        (place / f"new-{version}").write_text("from the client")
    with mounted(f"[{server.address_6}]:/srv/with é", tmp_path / "b", f"vers={version}") as place:
        assert (place / "file").read_text() == "second"


def test_showmount_lists_the_exports(server: Server) -> None:
    lines = tool("showmount", "--no-headers", "--exports", server.address).splitlines()
    assert sorted(line.rstrip(" *") for line in lines) == ["/export", "/srv/with é"]


def test_where_it_stopped_it_refuses(server: Server) -> None:
    knock(server)
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        knock(server)
    server.start()
    knock(server)


def test_faults_of_the_network_are_silent_and_can_be_undone(server: Server) -> None:
    carrier = Path(f"/sys/class/net/{server.interface}/carrier")
    server.drop()
    with pytest.raises(TimeoutError):
        knock(server)
    server.deliver()
    knock(server)
    server.link(up=False)
    with pytest.raises(TimeoutError):
        knock(server)
    assert carrier.read_text() == "1\n"
    server.link(up=True)
    knock(server)
    server.cable(up=False)
    assert carrier.read_text() == "0\n"
    server.cable(up=True)
    knock(server)


def test_faults_of_the_own_link_are_known_at_once(server: Server) -> None:
    server.own_link(up=False)
    with pytest.raises(OSError, match="unreachable"):
        knock(server)
    server.own_link(up=True)
    knock(server)


def test_a_mount_outlives_a_restart_of_the_server_but_not_another_directory(tmp_path: Path) -> None:
    with Server(1) as server:
        (server.export("/export") / "file").write_text("here")
        server.start()
        with mounted(f"{server.address}:/export", tmp_path / "a", "vers=4.2") as place:
            assert (place / "file").read_text() == "here"
            server.stop()
            server.start()
            assert (place / "file").read_text() == "here"
            server.replace("/export")
            with pytest.raises(OSError, match="Stale"):
                (place / "file").write_text("x")
