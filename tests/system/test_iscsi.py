# SPDX-License-Identifier: LGPL-2.1-or-later
import os
import shutil
from pathlib import Path

import pytest

from storaged_conn.system import iscsi
from storaged_conn.system.iscsi import Disk, Session, Sessions, Where

IQN = "iqn.2003-01.org:disk"


class Tree:
    """The part of /sys and /run/udev that is about sessions."""

    def __init__(self, ground: Path) -> None:
        self.ground = ground
        self.sessions = Sessions(ground / "sys", ground / "udev")

    def write(self, path: str, text: str) -> None:
        file = self.ground / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def session(self, number: int, *, iqn: str = IQN, **given: str) -> None:
        session, connection = f"session{number}", f"connection{number}:0"
        files = {"targetname": iqn, "tpgt": "1", "state": "LOGGED_IN", "ifacename": "default"}
        for name, text in (files | given).items():
            self.write(f"sys/class/iscsi_session/{session}/{name}", text)
        for name, text in (("persistent_address", "10.9.0.2"), ("persistent_port", "3260")):
            self.write(f"sys/class/iscsi_connection/{connection}/{name}", text)

    def lun(
        self, number: int, lun: int, *, kind: str = "0", block: str = "", udev: str = ""
    ) -> None:
        device = f"sys/class/iscsi_session/session{number}/device/target{number}:0:0"
        self.write(f"{device}/{number}:0:0:{lun}/type", kind)
        if block:
            self.write(f"{device}/{number}:0:0:{lun}/block/{block}/dev", f"8:{lun}")
        if udev:
            self.write(f"udev/b8:{lun}", udev)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_host_without_iscsi_has_no_sessions(tree: Tree) -> None:
    assert tree.sessions.all() == {}
    assert tree.sessions.refresh("session1") is None


def test_a_session_is_read_with_all_that_it_has(tree: Tree) -> None:
    tree.session(3)
    tree.lun(3, 0, kind="12")
    tree.lun(3, 10, block="sdc", udev="S:disk/by-path/p\nS:disk/by-id/wwn-1\nS:disk/by-uuid/u")
    tree.lun(3, 2, block="sdb")
    tree.lun(3, 1)
    disks = (
        Disk(1),
        Disk(2, "sdb", "8:2"),
        Disk(10, "sdc", "8:10", ("/dev/sdc", "/dev/disk/by-id/wwn-1", "/dev/disk/by-path/p")),
    )
    where = Where(IQN, "10.9.0.2", 3260, "default")
    assert tree.sessions.all() == {"session3": Session("session3", where, 1, "LOGGED_IN", disks)}
    assert tree.sessions.all()["session3"].number == 3


def test_a_session_that_is_being_made_is_not_there_yet(tree: Tree) -> None:
    (tree.ground / "sys/class/iscsi_session/session1").mkdir(parents=True)
    assert tree.sessions.all() == {}
    tree.session(1, iqn="", state="FREE")
    assert tree.sessions.all() == {}
    tree.session(1, iqn="(null)", state="FREE")
    assert tree.sessions.all() == {}
    tree.session(1, state="FREE")
    assert tree.sessions.all()["session1"].state == "FREE"


def test_what_a_session_is_told_late_is_read_late(tree: Tree) -> None:
    tree.session(1, state="FREE", tpgt="0", ifacename="")
    assert tree.sessions.all()["session1"].portal == 0
    tree.session(1, tpgt="7", ifacename="eth7")
    session = tree.sessions.refresh("session1")
    assert session
    assert (session.portal, session.where.interface) == (7, "eth7")


def test_a_session_that_is_told_all_while_it_is_read_is_read_again(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.session(1, state="FREE", tpgt="0")

    def read(path: Path) -> str:
        text = path.read_text().strip()
        if path.name == "tpgt":
            tree.session(1, tpgt="7")
        return text

    monkeypatch.setattr(iscsi, "_line", read)
    assert tree.sessions.all()["session1"].portal == 0
    session = tree.sessions.refresh("session1")
    assert session
    assert (session.portal, session.state) == (7, "LOGGED_IN")


def test_a_session_that_was_given_up_by_the_kernel_has_failed(tree: Tree) -> None:
    tree.session(1)
    tree.session(2, state="FREE")
    tree.lun(2, 0, kind="12")
    assert [one.state for one in tree.sessions.all().values()] == ["LOGGED_IN", "FAILED"]
    tree.session(1, state="FREE")
    session = tree.sessions.refresh("session1")
    assert session
    assert session.state == "FAILED"


def test_only_what_is_refreshed_is_read_again(tree: Tree) -> None:
    tree.session(1)
    tree.session(2)
    tree.sessions.all()
    for number in (1, 2):
        tree.session(number, state="FAILED")
    refreshed = tree.sessions.refresh("session2")
    assert refreshed
    assert refreshed.state == "FAILED"
    assert [one.state for one in tree.sessions.all().values()] == ["LOGGED_IN", "FAILED"]


def test_what_is_gone_is_forgotten_and_what_is_new_is_found(tree: Tree) -> None:
    tree.session(1)
    tree.sessions.all()
    shutil.rmtree(tree.ground / "sys/class/iscsi_session/session1")
    tree.session(2)
    assert list(tree.sessions.all()) == ["session2"]


def test_only_what_differs_is_told(tree: Tree) -> None:
    told: list[str] = []
    tree.sessions.changed = told.append
    tree.session(1)
    tree.session(2, iqn="iqn.2003-01.org:other")
    tree.sessions.all()
    for _ in range(3):
        before = tree.sessions.refresh("session1")
        assert tree.sessions.refresh("session1") is before
    tree.session(1, state="FAILED")
    tree.sessions.refresh("session1")
    tree.sessions.refresh("session9")
    shutil.rmtree(tree.ground / "sys/class/iscsi_session/session2")
    tree.sessions.all()
    shutil.rmtree(tree.ground / "sys/class/iscsi_session/session1")
    tree.sessions.refresh("session1")
    assert told == [IQN, "iqn.2003-01.org:other", IQN, "iqn.2003-01.org:other", IQN]


def test_the_sessions_of_a_target_are_read_anew(tree: Tree) -> None:
    tree.session(1)
    tree.session(2, iqn="iqn.2003-01.org:other")
    tree.session(3)
    assert [one.name for one in tree.sessions.of_target(IQN)] == ["session1", "session3"]
    tree.session(3, state="FAILED")
    assert [one.state for one in tree.sessions.of_target(IQN)] == ["LOGGED_IN", "FAILED"]


def test_a_session_that_goes_while_it_is_read_is_gone(tree: Tree) -> None:
    tree.session(1)
    tree.sessions.all()
    os.unlink(tree.ground / "sys/class/iscsi_session/session1/state")
    assert tree.sessions.refresh("session1") is None


def test_an_interface_without_a_name_is_the_default(tree: Tree) -> None:
    tree.session(1, ifacename="<NULL>")
    assert tree.sessions.all()["session1"].where.interface == "default"
