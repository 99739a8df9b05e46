# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whole tree is clean."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "--no-fix"], ["ruff", "format", "--check"], ["mypy"]],
    ids=lambda command: " ".join(command[:2]),
)
def test_the_linter_has_nothing_to_say(command: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
