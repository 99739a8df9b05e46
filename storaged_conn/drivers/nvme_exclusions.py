# SPDX-License-Identifier: LGPL-2.1-or-later
"""What no service of this host may connect: /etc/nvme/exclusions.conf and exclusions.conf.d.

    [exclusions]
    exclusion = transport=tcp;traddr=192.0.2.10;nqn=nqn.2014-08.org.example:retired

Only the fields that an entry has are compared; one with an unknown field, or with none, matches
nothing, and a file that cannot be read excludes nothing. Read anew at every attempt.

Source: nvme-cli, libnvme/design/EXCLUSIONS.md (3.0).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from storaged_conn.drivers.nvme_remote import same_address

ETC: Final = Path("/etc/nvme")

SECTION: Final = "[exclusions]"

FIELDS: Final = frozenset(
    {"transport", "traddr", "trsvcid", "nqn", "host-traddr", "host-iface", "hostnqn", "hostid"}
)
ADDRESSES: Final = frozenset({"traddr", "host-traddr"})


def excluded_by(connection: Mapping[str, str], etc: Path = ETC) -> str:
    """Give the entry that excludes a connection, as it is written, or nothing.

    Args:
        connection: what there is of FIELDS.
        etc: where the files are.
    """
    for file in (etc / "exclusions.conf", *sorted((etc / "exclusions.conf.d").glob("*.conf"))):
        for entry in _entries(file):
            if _matches(entry, connection):
                return entry
    return ""


def _entries(file: Path) -> Iterator[str]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, ValueError):
        return
    inside = False
    for line in map(str.strip, lines):
        if line.startswith("["):
            inside = line == SECTION
        key, _, value = line.partition("=")
        if inside and key.strip() == "exclusion":
            yield value.strip()


def _matches(entry: str, connection: Mapping[str, str]) -> bool:
    fields = [field.partition("=") for field in entry.split(";") if field.strip()]
    pairs = {key.strip(): value.strip() for key, _, value in fields}
    return bool(pairs) and all(_agrees(key, pairs[key], connection) for key in pairs)


def _agrees(key: str, wanted: str, connection: Mapping[str, str]) -> bool:
    if key not in FIELDS or key not in connection:
        return False
    if key in ADDRESSES:
        return same_address(wanted, connection[key])
    return wanted == connection[key]
