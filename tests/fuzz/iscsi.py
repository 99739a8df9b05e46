# SPDX-License-Identifier: LGPL-2.1-or-later
"""What targets say in the login phase, and what open-iscsi and the kernel write of sessions."""

import contextlib
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from storaged_conn.core.secret import Secret
from storaged_conn.drivers.iscsi_options import Remote, login, read_uri
from storaged_conn.errors import AttemptError, InvalidArgumentError
from storaged_conn.system import iscsi_nodes
from storaged_conn.system import iscsi_pdu as pdu
from storaged_conn.system.iscsi import Sessions
from storaged_conn.system.iscsi_login import read_portal
from storaged_conn.system.iscsi_nodes import ALGORITHMS, AUTH
from storaged_conn.system.iscsiadm import failure

IQN: Final = "iqn.2003-01.org:disk"

SECRET: Final = Secret(b"never to be seen")

LOGIN: Final = pdu.Login("iqn.1993-08.org:a", IQN, "me", SECRET, "it", SECRET)

ANSWERS: Final = (
    b"\x23\x87" + bytes(46) + b"TargetPortalGroupTag=1\0AuthMethod=CHAP\0",
    b"\x23\x00" + bytes(46) + b"CHAP_A=5\0CHAP_I=7\0CHAP_C=0x0102\0",
    b"\x23\x00" + bytes(46) + b"CHAP_A=5\0CHAP_I=7\0CHAP_C=0bAAAA\0CHAP_N=it\0CHAP_R=0x00\0",
    b"\x24\x80" + bytes(46) + b"TargetName=" + IQN.encode() + b"\0TargetAddress=[fd09::2]:860,2\0",
)

RECORDS: Final = (
    f"# storaged-conn iscsi://h/{IQN}\nnode.name = {IQN}\nnode.session.auth.authmethod = CHAP\n",
    "node.session.auth.username=me\n#x\n = \nnode.session.auth.password = a = b\n",
)

SESSIONS: Final = ("LOGGED_IN\x1e" + IQN + "\x1e1\x1e10.9.0.2\x1e3260\x1edefault\x1e0\x1e8:0",)


def feed_answers(data: bytes) -> None:
    """A PDU of the target."""
    header, text = data[: pdu.HEADER].ljust(pdu.HEADER, b"\0"), data[pdu.HEADER :]
    assert pdu.read(header).size >= 0
    said = pdu.first_values(pdu.pairs(text))
    chap = pdu.Chap(LOGIN, 1, b"challenge")
    with contextlib.suppress(AttemptError):
        answer = chap.answer(said)
        assert SECRET.reveal().decode() not in "".join(answer.values())
        chap.check(said)
    for value in said.values():
        portal = read_portal(value)
        if portal:
            with contextlib.suppress(InvalidArgumentError):
                uri = Remote(portal.address, IQN).uri
                assert read_uri(uri).iqn == IQN


def feed_records(data: bytes) -> None:
    """A node record, or iscsid.conf."""
    text = data.decode(errors="surrogateescape")
    lines = dict(iscsi_nodes._parse(text))
    assert not any("\n" in one for pair in lines.items() for one in pair)
    assert SECRET.reveal().decode() not in repr(login(lines, "iqn.1993-08.org:a", IQN))
    name = text.replace("/", "").replace("\0", "")
    others, root = (iscsi_nodes._defaults(text, trusted=one) for one in (False, True))
    assert {key for key in others if key.startswith(AUTH)} <= {ALGORITHMS}
    assert others.items() <= root.items()
    where = iscsi_nodes._where(IQN, Path("/x", name or "x", "default"))
    assert where is None or name.startswith(where.address)


def feed_iscsiadm(data: bytes) -> None:
    """STATUS, a byte, and what iscsiadm said."""
    status, said = data[:1] or b"\1", data[1:].decode(errors="replace")
    message = str(failure(status[0], said))
    assert message.isprintable()
    assert 0 < len(message) < 400


def feed_sessions(data: bytes) -> None:
    """STATE FIELD TARGET FIELD TPGT FIELD ADDRESS FIELD PORT FIELD IFACE FIELD TYPE FIELD DEV."""
    ground = Path(_ground().name)
    session, connection = "class/iscsi_session/session1", "class/iscsi_connection/connection1:0"
    disk = f"{session}/device/target1:0:0/1:0:0:1"
    paths = (
        *(f"{session}/{name}" for name in ("state", "targetname", "tpgt")),
        *(f"{connection}/{name}" for name in ("persistent_address", "persistent_port")),
        *(f"{session}/ifacename", f"{disk}/type", f"{disk}/block/sda/dev"),
    )
    for path, value in zip(paths, [*data.split(b"\x1e", 7), *[b""] * 8], strict=False):
        (ground / path).parent.mkdir(parents=True, exist_ok=True)
        (ground / path).write_bytes(value)
    for one in Sessions(ground, ground / "udev").all().values():
        assert one.where.iqn
        assert one.where.address
        assert one.number == 1


@cache
def _ground() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="storaged-sessions-")
