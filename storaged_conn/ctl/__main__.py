# SPDX-License-Identifier: LGPL-2.1-or-later
"""See and manage the storage connections that storaged-conn keeps up.

exit status:
  0  done; a monitor that is interrupted, and any command whose reader goes away, is done too
  1  the service or the world said no, or the service or the bus cannot be reached:
     one line on stderr says what happened and what to do
  2  wrong usage; nothing was changed

With --json, results are JSON on stdout, with the D-Bus names of properties, and an error is one
JSON object on stderr, with its D-Bus name as "error" and its text as "message".

A KEY of -o that takes a list may be given several times, or once with commas. NO_COLOR switches
colours off, COLUMNS sets the width of the table.

Passwords and keys never stand on the command line, which everybody can see: --secret password asks
for one at the terminal, --secret password=FILE reads it from a file, and --secret password=- from
standard input; a newline at the end is no part of it. To change one, manage the same URI with the
new one under another id, then unmanage the old id.
"""

import os
import signal
import sys
from typing import Final

from storaged_conn.ctl.arguments import parse

PIPE_CLOSED: Final = 0
"""Exit status when nobody reads on: who closes the pipe has seen enough."""

NOT_WRITTEN: Final = 1


def main() -> int:
    """Run one command; the exit status is the module's."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to clean up, so no traceback
    arguments = parse(sys.argv[1:], __doc__ or "")
    # asyncio and dbus-next take longer than all else that --help and a wrong usage need.
    from storaged_conn.ctl.commands import run  # noqa: PLC0415

    try:
        status = run(arguments)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        print(f"storaged-connctl: cannot write the result: {error.strerror}", file=sys.stderr)
        return NOT_WRITTEN
    return status


if __name__ == "__main__":
    sys.exit(main())
