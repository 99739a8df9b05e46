# SPDX-License-Identifier: LGPL-2.1-or-later
"""Paths and sources as clients write them: checked once, and written in one way from then on."""

import os
import posixpath
from typing import Final
from urllib.parse import unquote_to_bytes

from storaged_conn.errors import InvalidArgumentError

MAX_PATH: Final = 4095
"""Bytes. Source: PATH_MAX of limits.h, without the NUL."""

MAX_NAME: Final = 255
"""Bytes. Source: NAME_MAX of limits.h."""


def decode(quoted: str, what: str) -> str:
    """Undo the percent-encoding of the part of a URI that is a path or a name.

    Raises:
        InvalidArgumentError: it has a query or a fragment, or is no path and no name.
    """
    if "?" in quoted or "#" in quoted:
        raise InvalidArgumentError("uri: write '?' as %3F and '#' as %23")
    text = os.fsdecode(unquote_to_bytes(quoted))
    check_text(text, what)
    return text


def straighten(path: str) -> str:
    """Write an absolute path in the one way without '.', '..' and needless slashes."""
    return posixpath.normpath(f"/{path.lstrip('/')}")


def check_text(text: str, what: str) -> None:
    """Refuse what is no path and no name.

    Raises:
        InvalidArgumentError: it is empty, too long or no UTF-8, or has a control character.
    """
    try:
        size = len(os.fsencode(text))
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        raise InvalidArgumentError(f"{what} is no UTF-8") from None
    if not 1 <= size <= MAX_PATH:
        raise InvalidArgumentError(f"{what} must have 1 to {MAX_PATH} bytes")
    if any(character < " " or character == "\x7f" for character in text):
        raise InvalidArgumentError(f"{what} contains a control character")


def check_path(path: str, what: str) -> None:
    """Refuse all but an absolute path that is written in the one way.

    Raises:
        InvalidArgumentError: it is not.
    """
    if straighten(path) != path:  # normpath alone leaves two slashes in front as they are
        raise InvalidArgumentError(
            f"{what} must be an absolute path without '.', '..' and needless slashes"
        )
    check_text(path, what)
    if any(len(os.fsencode(name)) > MAX_NAME for name in path.split("/")):
        raise InvalidArgumentError(f"{what} has a name of more than {MAX_NAME} bytes")
