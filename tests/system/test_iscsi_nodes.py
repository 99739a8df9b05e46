# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import os
import stat
from pathlib import Path

import pytest

from storaged_conn.core.secret import Secret
from storaged_conn.errors import TroubleError, UnusableError
from storaged_conn.system import iscsi_nodes
from storaged_conn.system.iscsi import Where
from storaged_conn.system.iscsi_nodes import MARK, Nodes
from storaged_conn.system.iscsiadm import Iscsiadm

IQN = "iqn.2003-01.org:disk"
WHERE = Where(IQN, "fd09::2", 3260, "default")
OTHER = WHERE._replace(address="10.9.0.2", interface="eth7")
URI = f"iscsi://[fd09::2]/{IQN}"


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    (tmp_path / "etc").mkdir()
    tool = tmp_path / "iscsiadm"
    tool.write_text(f"#!/bin/sh\necho ' from {tmp_path}/db/ifaces folder'\n")
    tool.chmod(0o755)
    for interface in ("eth7", "eth8"):
        path = tmp_path / "db/ifaces" / interface
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# BEGIN\niface.iscsi_ifacename = {interface}\n")
    return Nodes(Iscsiadm(str(tool)), config=tmp_path / "etc", locks=tmp_path / "run/lock/iscsi")


def lines(path: Path) -> dict[str, str]:
    text = path.read_text().splitlines()
    return dict(line.split(" = ", 1) for line in text if not line.startswith("#"))


def path_of(ground: Path, where: Where = WHERE, portal: int = 1) -> Path:
    directory = f"{where.address},{where.port},{portal}"
    return ground / "db/nodes" / where.iqn / directory / where.interface


async def test_a_record_is_complete_and_for_root_alone(nodes: Nodes, tmp_path: Path) -> None:
    os.umask(0)
    try:
        assert await nodes.write(URI, WHERE, 1, {"node.session.auth.password": Secret(b"a = #b")})
    finally:
        os.umask(0o022)
    path = path_of(tmp_path)
    assert path.read_text().splitlines()[0] == f"{MARK}{URI}"
    assert lines(path)["node.session.auth.password"] == "a = #b"
    assert lines(path)["node.name"] == IQN
    assert lines(path)["node.conn[0].address"] == "fd09::2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    while path.name != "db":
        path = path.parent
        assert path.name == "db" or stat.S_IMODE(path.stat().st_mode) == 0o700


async def test_a_record_is_written_again_with_what_is_new(nodes: Nodes, tmp_path: Path) -> None:
    for password in (b"the first and the longer", b"the second"):
        assert await nodes.write(URI, WHERE, 1, {"node.session.auth.password": Secret(password)})
    assert lines(path_of(tmp_path))["node.session.auth.password"] == "the second"
    assert b"first" not in path_of(tmp_path).read_bytes()


async def test_what_holds_for_all_is_copied_and_ours_comes_last(
    nodes: Nodes, tmp_path: Path
) -> None:
    text = "#node.x = 1\nnode.startup = automatic\n node.session.cmds_max=64 \niscsid.startup = y\n"
    (tmp_path / "etc/iscsid.conf").write_text(text)
    await nodes.write(URI, OTHER, 1, {})
    found = lines(path_of(tmp_path, OTHER))
    assert found["node.session.cmds_max"] == "64"
    assert found["node.startup"] == "manual"
    assert found["iface.iscsi_ifacename"] == "eth7"
    assert not {"node.x", "iscsid.startup"} & found.keys()


async def test_records_are_found_again_and_removed(nodes: Nodes, tmp_path: Path) -> None:
    assert await nodes.find(IQN) == {}
    await nodes.write(URI, WHERE, 1, {})
    await nodes.write("iscsi://other", OTHER, 2, {})
    foreign = path_of(tmp_path, OTHER._replace(interface="eth8"), 2)
    foreign.write_text("node.name = x\n")
    assert await nodes.find(IQN) == {WHERE: URI, OTHER: "iscsi://other"}
    for where in (WHERE, OTHER, OTHER._replace(interface="eth8"), WHERE):
        await nodes.remove(where)
    assert await nodes.find(IQN) == {}
    assert [path.name for path in (tmp_path / "db/nodes").rglob("*") if path.is_file()] == ["eth8"]
    foreign.unlink()
    await nodes.write(URI, WHERE, 1, {})
    await nodes.remove(WHERE)
    assert not (tmp_path / "db/nodes" / IQN / "fd09::2,3260,1").exists()


@pytest.mark.parametrize("old_style", [False, True])
async def test_a_record_of_others_is_kept(nodes: Nodes, tmp_path: Path, *, old_style: bool) -> None:
    path = path_of(tmp_path)
    path = path.parent.with_name("fd09::2,3260") if old_style else path
    path.parent.mkdir(parents=True)
    text = "node.session.auth.username = me\n"
    path.write_text(text)
    assert not await nodes.write(URI, WHERE, 1, {"node.session.auth.username": "me"})
    with pytest.raises(UnusableError) as caught:
        await nodes.write(URI, WHERE, 1, {"node.session.auth.password": Secret(b"secret!")})
    assert "node.session.auth.password" in str(caught.value)
    assert "secret!" not in str(caught.value)
    await nodes.remove(WHERE)
    assert path.read_text() == text


async def test_a_lock_of_others_is_waited_for(nodes: Nodes, tmp_path: Path) -> None:
    locks = tmp_path / "run/lock/iscsi"
    locks.mkdir(parents=True)
    (locks / "lock.write").touch()
    writing = asyncio.create_task(nodes.write(URI, WHERE, 1, {}))
    await asyncio.sleep(0.1)  # to see that nothing is written meanwhile
    assert not path_of(tmp_path).exists()
    (locks / "lock.write").unlink()
    await writing
    assert path_of(tmp_path).exists()
    assert not (locks / "lock.write").exists()


async def test_a_lock_that_stays_is_told(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iscsi_nodes, "PATIENCE", 0.05)
    lock = tmp_path / "run/lock/iscsi/lock.write"
    lock.parent.mkdir(parents=True)
    lock.touch()
    with pytest.raises(TroubleError, match=r"lock\.write is in the way"):
        await nodes.write(URI, WHERE, 1, {})
    assert lock.exists()


def test_a_lock_that_a_kill_of_ours_has_left_is_taken_away_before_iscsiadm_is_asked(
    tmp_path: Path,
) -> None:
    locks = tmp_path / "run/lock/iscsi"
    locks.mkdir(parents=True)
    (locks / "storaged-conn").touch()
    os.link(locks / "storaged-conn", locks / "lock.write")
    Nodes(Iscsiadm("/nonesuch"), config=tmp_path, locks=locks)
    assert not (locks / "lock.write").exists()


async def test_a_link_in_the_place_of_a_record_is_not_followed(
    nodes: Nodes, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text(f"{MARK}x\n")
    path_of(tmp_path).parent.mkdir(parents=True)
    path_of(tmp_path).symlink_to(victim)
    with pytest.raises(TroubleError):
        await nodes.write(URI, WHERE, 1, {})
    assert victim.read_text() == f"{MARK}x\n"


async def test_a_place_that_cannot_be_written_is_told(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "db/nodes").write_text("")
    with pytest.raises(TroubleError, match="see this directory"):
        await nodes.write(URI, WHERE, 1, {})


async def test_an_initiator_is_named_by_the_host_or_by_the_interface(
    nodes: Nodes, tmp_path: Path
) -> None:
    with pytest.raises(UnusableError, match="no initiator name"):
        await nodes.initiator("default")
    (tmp_path / "etc/initiatorname.iscsi").write_text("# x\nInitiatorName=iqn.1993-08.org:a\n")
    assert await nodes.initiator("iser") == "iqn.1993-08.org:a"
    (tmp_path / "db/ifaces/eth7").write_text("iface.initiatorname = iqn.1993-08.org:b\n")
    assert await nodes.initiator("eth7") == "iqn.1993-08.org:b"
    with pytest.raises(UnusableError, match="'nonesuch'"):
        await nodes.initiator("nonesuch")
