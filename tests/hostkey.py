# SPDX-License-Identifier: LGPL-2.1-or-later
"""A key of a host, as systemd-creds(1) makes it, in a file of a test's own.

Source: systemd, docs/ENVIRONMENT.md, SYSTEMD_CREDENTIAL_SECRET.
"""

import subprocess
from pathlib import Path

import pytest

from storaged_conn.system.creds import PROGRAM
from storaged_conn.system.run import ENVIRONMENT
from tests.live import DEADLINE


def host_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a key, and have all children use it."""
    monkeypatch.setitem(ENVIRONMENT, "SYSTEMD_CREDENTIAL_SECRET", str(file))
    argv = [PROGRAM, "setup"]
    subprocess.run(argv, env=ENVIRONMENT, check=True, capture_output=True, timeout=DEADLINE)
    return file
