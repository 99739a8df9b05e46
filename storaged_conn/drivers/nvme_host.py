# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who this host is to NVMe subsystems: its NQN, by which they let it in, and its id.

The kernel's own default is another at each boot, so that no subsystem could know it: where nobody
has written /etc/nvme/hostnqn, the machine's id gives one that stays.

The kernel refuses two NQNs with one id, and one NQN with two. Source: drivers/nvme/host/fabrics.c,
nvmf_host_add, since Linux 6.5.
"""

import hashlib
import hmac
import re
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from storaged_conn.core.model import Target
from storaged_conn.errors import UnusableError
from storaged_conn.system.nvme import read_line

ETC: Final = Path("/etc")

BY_UUID: Final = "nqn.2014-08.org.nvmexpress:uuid:"
"""Source: NVM Express Base Specification, 4.5, the second form of an NQN."""

_NQN: Final = re.compile(r"[^\s,]{1,223}")
"""Others than the specification's are in use, too; a comma would end the kernel's field."""

_SALT: Final = b"storaged-conn: the host's NQN"
"""What keeps the machine's id to itself. Source: machine-id(5): it should not be shown."""


class Host(NamedTuple):
    """A host's identity.

    Attributes:
        id: a UUID.
    """

    nqn: str
    id: str


def read_host(target: Target, etc: Path = ETC) -> Host:
    """Say who we are to a target: what its options say, or the host's files, or the machine's id.

    Source: nvme-connect(1), --hostnqn and --hostid.

    Raises:
        UnusableError: a file has something else.
    """
    given, id_given = target.option("host-nqn"), target.option("host-id")
    written = read_line(etc / "nvme/hostnqn")
    nqn = str(given or written or _made(etc))
    if not _NQN.fullmatch(nqn) or not nqn.isprintable():
        raise UnusableError(f"{etc}/nvme/hostnqn has no NQN; see nvme-gen-hostnqn(1)")
    own_id = read_line(etc / "nvme/hostid") if not given and written else ""
    return Host(nqn, str(id_given or _read_id(own_id, etc) or _id_of(nqn)))


def _read_id(text: str, etc: Path) -> str:
    try:
        return str(UUID(text)) if text else ""
    except ValueError:
        raise UnusableError(f"{etc}/nvme/hostid has no UUID; see nvme-connect(1)") from None


def _id_of(nqn: str) -> str:
    """Give the id that is in an NQN, or one that is always the same for it."""
    with suppress(ValueError):
        return str(UUID(re.sub(r".*:uuid:", "", nqn)))
    return str(uuid5(NAMESPACE_URL, nqn))


def _made(etc: Path) -> str:
    key = read_line(etc / "machine-id").encode()
    digest = hmac.digest(key, _SALT, hashlib.sha256)
    return f"{BY_UUID}{UUID(bytes=digest[:16], version=4)}"
