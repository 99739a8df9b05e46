# SPDX-License-Identifier: LGPL-2.1-or-later
"""A password or key, which shows itself to nobody who has not asked for it by name."""

from hmac import compare_digest
from typing import Final, NoReturn, final

MAX_SECRET_BYTES: Final = 4096
"""More than any secret of a storage protocol. Source: open-iscsi usr/auth.h, AUTH_STR_MAX_LEN, 256
for CHAP; nvme-gen-dhchap-key(1), at most 64 bytes of key, written in base64."""


@final
class Secret:
    """Bytes with one way out: `reveal`.

    Text, formats, errors and logs have `<secret>` instead. It is neither copied nor pickled, and
    has one hash for all values, for a hash could be guessed backwards.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Give the bytes to what must have them, and to nothing that keeps or shows them."""
        return self._value

    def __repr__(self) -> str:
        """Show that it is one."""
        return "<secret>"

    def __format__(self, spec: str) -> str:
        """Show that it is one, also where width is asked for."""
        return format(repr(self), spec)

    def __eq__(self, other: object) -> bool:
        """Compare in a time that does not tell how much is equal."""
        return isinstance(other, Secret) and compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        """Give what any other secret gives, too."""
        return hash(Secret)

    def __getstate__(self) -> NoReturn:
        """Refuse what copy and pickle ask for.

        Raises:
            TypeError: always.
        """
        raise TypeError("a secret is neither copied nor pickled")
