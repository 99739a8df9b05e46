# SPDX-License-Identifier: LGPL-2.1-or-later
"""storaged-connd: arguments, logging, and the event loop."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from storaged_conn.bus.connection import BusLostError
from storaged_conn.config import load
from storaged_conn.daemon import Daemon, NameTakenError, Settings
from storaged_conn.errors import StoreError
from storaged_conn.system import dumps
from storaged_conn.system.journal import JournalHandler

logger = logging.getLogger("storaged_conn")

EXIT_FAILURE: Final = 1
EXIT_STORE: Final = 78
"""Source: sysexits.h, EX_CONFIG; the unit does not restart the service for it."""

MOUNT_ROOTS: Final = (Path("/mnt"), Path("/media"), Path("/srv"))
"""Source: Filesystem Hierarchy Standard 3.0: where people expect mounts."""

EPILOG: Final = """
exit status: 0 stopped by SIGTERM or SIGINT; 1 there is no bus, it went away, or the service runs
already; 2 wrong usage; 78 the records cannot be read, and were left as they are.
Nothing is disconnected when the service stops.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    options = _arguments().parse_args(argv)
    _set_up_logging(options.log_level)
    os.umask(0o077)
    dumps.forbid()
    config, complaints = load(options.config_root)
    for complaint in complaints:
        logger.warning("%s", complaint)
    settings = Settings(
        options.bus,
        options.state_dir,
        options.runtime_dir,
        tuple(options.mount_root or MOUNT_ROOTS),
        options.enable_simulated,
        config,
    )
    try:
        asyncio.run(Daemon(settings).run())
    except StoreError as error:
        logger.critical("%s", error)
        return EXIT_STORE
    except (BusLostError, NameTakenError) as error:
        logger.critical("%s", error)
        return EXIT_FAILURE
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "storaged-connd", description="Keeps storage connections up.", epilog=EPILOG
    )
    add = parser.add_argument
    add("--bus", default="system", help="system (default), session, or a D-Bus address")
    add("--state-dir", type=_directory, default="/var/lib/storaged-conn", metavar="DIR")
    add("--runtime-dir", type=_directory, default="/run/storaged-conn", metavar="DIR")
    roots = ", ".join(map(str, MOUNT_ROOTS))
    add(
        "--mount-root",
        type=_directory,
        action="append",
        metavar="DIR",
        help=f"where clients may have things mounted; may be repeated (default: {roots})",
    )
    add(
        "--config-root",
        type=_directory,
        default="/",
        metavar="DIR",
        help="where etc/storaged-conn/storaged-conn.conf is (default: /)",
    )
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    add("--enable-simulated", action="store_true", help="allow simulated: connections, for tests")
    return parser


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise argparse.ArgumentTypeError(f"{text!r} is not an absolute path")
    return path


def _set_up_logging(level: str) -> None:
    in_journal = "JOURNAL_STREAM" in os.environ  # source: systemd.exec(5)
    handler = JournalHandler(sys.stderr) if in_journal else logging.StreamHandler(sys.stderr)
    logging.basicConfig(level=level.upper(), handlers=[handler], format="%(message)s")


if __name__ == "__main__":
    sys.exit(main())
