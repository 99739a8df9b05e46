# SPDX-License-Identifier: LGPL-2.1-or-later
"""The option `mount-options` as clients write it: a list, each checked, sorted, and given once."""

import re
from collections.abc import Callable
from typing import Final

from storaged_conn.core.model import Value
from storaged_conn.errors import InvalidArgumentError

_FLAG: Final = re.compile(r"([A-Za-z0-9_.:][A-Za-z0-9_.:-]*)(=[^,\s\\\"'=%]*)?")


def read_flags(given: Value, refuse: Callable[[str], None]) -> tuple[str, ...]:
    """Read mount options: nothing in one of them may become a second one (CVE-2026-6437).

    Args:
        given: NAME or NAME=VALUE each.
        refuse: raises for a name that is not accepted.

    Raises:
        InvalidArgumentError: it names the option.
    """
    assert isinstance(given, tuple)
    values: dict[str, str] = {}
    for flag in given:
        found = _FLAG.fullmatch(flag)
        if not found or not flag.isprintable():
            raise InvalidArgumentError(f"options: 'mount-options': {flag!r} is malformed")
        name = found[1]
        if name.lower() in {"ro", "rw"}:
            raise InvalidArgumentError("options: give 'read-only' instead of ro or rw")
        refuse(name)
        if values.setdefault(name, flag) != flag:
            raise InvalidArgumentError(f"options: 'mount-options': {name!r} is given twice")
    return tuple(sorted(values.values()))
