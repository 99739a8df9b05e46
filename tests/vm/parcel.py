# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes into the guest: the project as its package, the tests, and the tools that run them.

`deb/` has what `make deb` builds; `tools/` has pytest and coverage, unpacked, which is all
that they need; `tests/` goes with pyproject.toml, which has pytest's settings; `arguments` has
those of pytest, one on each line; and `coverage` is there if the service is to be measured.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from tests.vm.cache import cached, contents
from tests.vm.host import run
from tests.vm.image import PYTHON

TOP: Final = Path(__file__).parents[2]

# pip judges a dependency "only for Python < 3.13" by the Python that it runs on, not by the one
# that it downloads for (pip issue 11198): hence typing_extensions, for pytest-asyncio on 3.11.
TOOLS: Final = ("coverage", "pytest", "pytest-asyncio", "typing_extensions")

PLATFORMS: Final = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")

BUILD: Final = 300.0
PIP: Final = 300.0
TAR: Final = 60.0
"""Seconds, many times what each took."""


def pack(suite: str, arguments: Sequence[str], file: Path, *, coverage: bool) -> None:
    """Write the parcel, a tar file.

    Args:
        arguments: for pytest.
        coverage: the service is measured, which makes it take twice its time.

    Raises:
        GuestError: the package cannot be built, or the tools cannot be had.
    """
    with tempfile.TemporaryDirectory() as name:
        parcel = Path(name)
        run("sh", TOP / "tools/deb", sys.executable, parcel / "deb", deadline=BUILD)
        shutil.copytree(_tools(PYTHON[suite]), parcel / "tools")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TOP / "tests", parcel / "tests", ignore=ignored)
        shutil.copy(TOP / "pyproject.toml", parcel)
        (parcel / "arguments").write_text("".join(f"{one}\n" for one in arguments))
        if coverage:
            (parcel / "coverage").touch()
        run("tar", "--create", "--owner=0", "--group=0", "--mode=u=rwX,go=rX", "-f", file,
            "-C", parcel, ".", deadline=TAR)  # fmt: skip


def _tools(python: str) -> Path:
    """Give the tools for the guest's Python, in the versions that are used here."""
    pins = sorted(
        f"{one.metadata['Name']}=={one.version}"
        for one in distributions()
        if one.metadata["Name"] != "storaged-conn"
    )

    def make(made: Path) -> None:
        with tempfile.NamedTemporaryFile("w") as constraints:
            constraints.write("\n".join(pins))
            constraints.flush()
            target = [f"--platform={one}" for one in PLATFORMS]
            target += [f"--python-version={python}", f"--constraint={constraints.name}"]
            pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
            run(*pip, "install", "--only-binary=:all:", *target, "--target", made, *TOOLS,
                deadline=PIP)  # fmt: skip

    inputs = [one.encode() for one in (python, *pins, *TOOLS)]
    return cached(f"tools-{python}", [*inputs, *contents(Path(__file__))], make)
