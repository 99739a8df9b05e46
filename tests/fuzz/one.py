# SPDX-License-Identifier: LGPL-2.1-or-later
"""python -m tests.fuzz.one NAME [OPTION...]: fuzzes one parser here, as libFuzzer does."""

import importlib
import sys

import atheris


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    _, name, *options = sys.argv
    with atheris.instrument_imports(include=["storaged_conn"]):
        parsers = importlib.import_module("tests.fuzz.parsers").PARSERS
    atheris.Setup([name, *options], parsers[name].feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
