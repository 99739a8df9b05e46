# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tests of the core run every line of it, and every branch, without the help of chance."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]


def run(*arguments: str, data: Path) -> str:
    """Run coverage(1), without the project's settings, which are for whole runs."""
    own = {"COVERAGE_FILE": str(data), "COVERAGE_RCFILE": os.devnull}
    result = subprocess.run(
        [sys.executable, "-m", "coverage", *arguments],
        cwd=ROOT, env=os.environ | own, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_tests_of_the_core_run_all_of_it(tmp_path: Path) -> None:
    data, cases = tmp_path / "data", ["tests/core", "--ignore=tests/core/test_life.py"]
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *cases]
    run("run", "--branch", "--source=storaged_conn.core", *pytest, data=data)
    assert run("report", "--show-missing", "--fail-under=100", data=data).endswith("100%\n")
