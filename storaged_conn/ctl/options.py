# SPDX-License-Identifier: LGPL-2.1-or-later
"""From `-o key=value` to values of the types that the service wants."""

from collections.abc import Iterable, Mapping
from typing import Final

from storaged_conn.ctl.client import Failure
from storaged_conn.errors import ERROR_PREFIX, InvalidArgumentError

Value = bool | int | str | list[str] | bytes

WRONG_USAGE: Final = 2

_BOOLEANS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_LIMIT: Final = 2**63
"""An x holds less than this, and not less than its negative."""


def typed(
    pairs: Iterable[tuple[str, str]], known: Mapping[str, str]
) -> dict[str, tuple[str, Value]]:
    """Give each option the type that the service wants for it.

    Args:
        pairs: keys and values as they were written.
        known: keys and D-Bus types. What is not in there, or has another type than b, x, s or as,
            is sent as text: the service refuses it by name, and says what it wants.

    Returns:
        Key to D-Bus signature and value.

    Raises:
        Failure: a value cannot be of its type, a key that takes one value is given twice, or a key
            is a secret, which everybody could see here.
    """
    written: dict[str, list[str]] = {}
    for key, text in pairs:
        written.setdefault(key, []).append(text)
    return {key: _typed(key, texts, known.get(key, "s")) for key, texts in written.items()}


def _typed(key: str, texts: list[str], signature: str) -> tuple[str, Value]:
    if signature == "ay":
        raise wrong(
            f"option {key} is a secret, and everybody can see a command line; give"
            f" '--secret {key}' to be asked for it, or '--secret {key}=FILE'"
        )
    if signature == "as":
        return "as", [item for text in texts if text for item in text.split(",")]
    text, *more = texts
    if more:
        raise wrong(f"option {key} is given {len(texts)} times; give it once")
    match signature:
        case "b":
            return "b", _boolean(key, text)
        case "x":
            return "x", _integer(key, text)
        case _:
            return "s", text


def _boolean(key: str, text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise wrong(f"option {key}: {text!r} is not a truth value; give {', '.join(_BOOLEANS)}")
    return _BOOLEANS[text.lower()]


def _integer(key: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise wrong(f"option {key}: {text!r} is not a whole number; give digits only") from None
    if not -_LIMIT <= number < _LIMIT:
        raise wrong(f"option {key}: {text} is too large; give a number of at most 64 bits")
    return number


def wrong(text: str) -> Failure:
    """Make the failure of a command line that cannot be right."""
    return Failure(text, ERROR_PREFIX + InvalidArgumentError.name, WRONG_USAGE)
