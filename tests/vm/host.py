# SPDX-License-Identifier: LGPL-2.1-or-later
"""How tools are run on the host, and how that goes is told."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ENVIRONMENT: Final = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

SHOWN: Final = 4000
"""Characters of a failed tool's output: its end says why."""


class GuestError(Exception):
    """Something other than a test went wrong; the message says what."""


def say(text: str) -> None:
    """Tell whoever waits."""
    sys.stdout.write(f"guest: {text}\n")
    sys.stdout.flush()


def run(*argv: str | Path, deadline: float) -> None:
    """Run a tool that must succeed.

    Args:
        deadline: seconds.

    Raises:
        GuestError: it did not; with the end of its output.
    """
    command = [str(word) for word in argv]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=ENVIRONMENT, timeout=deadline, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        output = (error.output or b"").decode(errors="replace")[-SHOWN:]
        raise GuestError(f"{command[0]} took longer than {deadline:g} s:\n{output}") from None
    if done.returncode:
        output = done.stdout.decode(errors="replace")[-SHOWN:]
        raise GuestError(f"{command[0]} ended with status {done.returncode}:\n{output}")
