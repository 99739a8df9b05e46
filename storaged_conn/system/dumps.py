# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps the memory of this process, which has secrets, from files and from other processes."""

import ctypes
import os
from typing import Final

PR_SET_DUMPABLE: Final = 4
"""Source: linux/prctl.h."""


def forbid() -> None:
    """Have the kernel write no core dump of this process, and give its memory to root alone.

    Nobody else reads /proc/PID/mem or environ, or traces it, though the uid be the same. What it
    executes begins anew: mount(8) and its helpers can be dumped, and have no secret.

    Raises:
        OSError: the kernel does not want to.

    Source: prctl(2), PR_SET_DUMPABLE; ptrace(2), Ptrace access mode checking.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
