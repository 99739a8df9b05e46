# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secrets, from where others do not see them: a terminal, a file, or standard input."""

import getpass
import os
import signal
import warnings
from collections.abc import Sequence
from typing import Final

from storaged_conn.ctl.client import Failure
from storaged_conn.ctl.options import wrong
from storaged_conn.ctl.screen import escape

STANDARD_INPUT: Final = "-"

STDIN_FILENO: Final = 0
"""Source: stdin(3)."""

ENOUGH: Final = 8192
"""Bytes that are read: more than the service takes, so that it refuses what is longer."""


def read(sources: Sequence[tuple[str, str]]) -> dict[str, tuple[str, bytes]]:
    """Get secrets, asking for those that come from nowhere else.

    Args:
        sources: names of options, each with a file, STANDARD_INPUT, or nothing.

    Returns:
        As options.typed: option to D-Bus signature and value.

    Raises:
        Failure: a secret cannot be had; the text names its option, and not its file, which may be
            the secret itself.
    """
    names = [name for name, _ in sources]
    for name in names:
        if names.count(name) > 1:
            raise wrong(f"secret {name} is given {names.count(name)} times; give it once")
    if [source for _, source in sources].count(STANDARD_INPUT) > 1:
        raise wrong("standard input can give one secret; give the others as files")
    return {name: ("ay", _read(name, source)) for name, source in sources}


def _read(name: str, source: str) -> bytes:
    if not source:
        return _ask(name)
    origin = STDIN_FILENO if source == STANDARD_INPUT else source
    try:
        with open(origin, "rb", closefd=origin != STDIN_FILENO) as file:
            return file.read(ENOUGH).removesuffix(b"\n")
    except OSError as error:
        text = f"secret {name}: its file cannot be read: {error.strerror}"
        raise Failure(f"{text}; make it readable, or give {name} alone to be asked") from None


def _ask(name: str) -> bytes:
    if not os.isatty(STDIN_FILENO):
        text = f"secret {name} cannot be asked for without a terminal"
        raise wrong(f"{text}; give {name}=FILE, or {name}=- for standard input")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would be shown
            return getpass.getpass(f"{escape(name)}: ").encode()
    except (getpass.GetPassWarning, EOFError, OSError, UnicodeError):
        text = f"secret {name} cannot be asked for at this terminal; give {name}=FILE"
        raise Failure(text) from None
    except KeyboardInterrupt:  # echo is on again by now
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    finally:
        signal.signal(signal.SIGINT, before)
