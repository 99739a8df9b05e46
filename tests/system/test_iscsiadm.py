# SPDX-License-Identifier: LGPL-2.1-or-later
from pathlib import Path

import pytest

from storaged_conn import errors
from storaged_conn.errors import AttemptError, InitiatorError, UnusableError
from storaged_conn.system import iscsiadm
from storaged_conn.system.iscsi import Where
from storaged_conn.system.iscsiadm import ERRORS, Iscsiadm, failure

WHERE = Where("iqn.2003-01.org:a", "fd09::2", 3260, "default")

MEANINGS = {
    1: "Failed",  # ISCSI_ERR
    2: "Missing",  # SESS_NOT_FOUND
    3: "Failed",  # NOMEM
    4: "Unreachable",  # TRANS
    5: "Failed",  # LOGIN
    6: "Failed",  # IDBM
    7: "Internal",  # INVAL
    8: "Unreachable",  # TRANS_TIMEOUT
    9: "InitiatorDown",  # INTERNAL
    10: "Failed",  # LOGOUT
    11: "TimedOut",  # PDU_TIMEOUT
    12: "Unusable",  # TRANS_NOT_FOUND
    13: "Unusable",  # ACCESS
    14: "Unusable",  # TRANS_CAPS
    15: "Busy",  # SESS_EXISTS
    16: "InitiatorDown",  # INVALID_MGMT_REQ
    17: "Unusable",  # ISNS_UNAVAILABLE
    18: "InitiatorDown",  # ISCSID_COMM_ERR
    19: "Refused",  # FATAL_LOGIN
    20: "InitiatorDown",  # ISCSID_NOTCONN
    21: "Missing",  # NO_OBJS_FOUND
    22: "Failed",  # SYSFS_LOOKUP
    23: "Failed",  # HOST_NOT_FOUND
    24: "AuthenticationFailed",  # LOGIN_AUTH_FAILED
    25: "Failed",  # ISNS_QUERY
    26: "Failed",  # ISNS_REG_FAILED
    27: "Unusable",  # OP_NOT_SUPP
    28: "Busy",  # BUSY
    29: "Failed",  # AGAIN
    30: "Internal",  # UNKNOWN_DISCOVERY_TYPE
    31: "InitiatorDown",  # CHILD_TERMINATED
    32: "Unreachable",  # SESSION_NOT_CONNECTED
    33: "InitiatorDown",  # REQ_TIMEDOUT
}
"""Every status of iscsiadm(8), EXIT STATUS, by hand."""


def program(path: Path, script: str) -> Iscsiadm:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Iscsiadm(str(path))


def test_every_status_of_the_manual_has_its_meaning() -> None:
    assert {status: error.name for status, (error, _) in ERRORS.items()} == MEANINGS
    assert list(MEANINGS) == list(range(1, 34))


@pytest.mark.parametrize("status", MEANINGS)
async def test_a_status_is_the_error_and_the_last_words_are_told(
    status: int, tmp_path: Path
) -> None:
    tool = program(tmp_path / "iscsiadm", f"echo 'iscsiadm: no luck' >&2; echo >&2; exit {status}")
    if status == iscsiadm.EXISTS:
        assert await tool.login(WHERE, 1, 15) is False
    else:
        with pytest.raises(AttemptError, match=rf"iscsiadm {status}: no luck") as caught:
            await tool.login(WHERE, 1, 15)
        assert caught.value.name == MEANINGS[status]
    if status in iscsiadm.NOT_FOUND:
        await tool.logout(3)
    else:
        with pytest.raises(AttemptError):
            await tool.logout(3)


@pytest.mark.parametrize("status", [34, 127, 255, -9])
def test_a_status_that_nobody_knows_may_pass(status: int) -> None:
    error = failure(status, "")
    assert type(error) is errors.TroubleError
    assert str(status) in str(error)


def test_what_is_said_is_not_repeated_at_length() -> None:
    assert len(str(failure(1, "x" * 5000))) < 300


async def test_it_is_told_what_to_log_in_to_and_nothing_else(tmp_path: Path) -> None:
    tool = program(tmp_path / "iscsiadm", f'echo "$*" >>{tmp_path}/argv')
    assert await tool.login(WHERE, 5, 15) is True
    await tool.logout(34)
    assert (tmp_path / "argv").read_text().splitlines() == [
        "-m node -T iqn.2003-01.org:a -p [fd09::2]:3260,5 -I default --login",
        "-m session -r 34 --logout",
    ]


async def test_a_deaf_iscsid_is_an_initiator_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iscsiadm, "MARGIN", 0.05)
    tool = program(tmp_path / "iscsiadm", "exec sleep 100")
    with pytest.raises(InitiatorError, match="does not answer"):
        await tool.login(WHERE, 1, 0)


async def test_it_is_asked_once_where_its_records_are(tmp_path: Path) -> None:
    line = "iSCSI DEBUG: Got 0 iface from /var/lib/iscsi/ifaces folder     # iface.c:1"
    tool = program(tmp_path / "iscsiadm", f"echo x >>{tmp_path}/asked; echo '{line}' >&2")
    assert await tool.database() == await tool.database() == Path("/var/lib/iscsi")
    assert (tmp_path / "asked").read_text() == "x\n"


async def test_one_that_does_not_say_is_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match="does not say"):
        await program(tmp_path / "iscsiadm", "exit 0").database()
    with pytest.raises(UnusableError, match="install"):
        await Iscsiadm(str(tmp_path / "nonesuch")).database()
