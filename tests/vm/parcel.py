# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes into the guest: the project as wheels, the tests, and the tools that run them.

`wheels/` has the project's wheel and those of its dependencies, all that a user installs; `tools/`
has pytest and coverage, unpacked, so that nothing has to be installed for them; `tests/` goes with
pyproject.toml, which has pytest's settings; `arguments` has those of pytest, one on each line; and
`coverage` is there if the service is to be measured.
"""

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Final
from zipfile import ZipFile

from tests.vm.cache import cached, contents
from tests.vm.host import run
from tests.vm.image import PYTHON

TOP: Final = Path(__file__).parents[2]

METADATA: Final = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
SOURCES: Final = ("storaged_conn", "dbus", "polkit", "systemd", "man")
"""What the wheel is built from; in a copy, since building leaves files behind."""

# pip judges a dependency "only for Python < 3.13" by the Python that it runs on, not by the one
# that it downloads for (pip issue 11198): hence typing_extensions, for pytest-asyncio on 3.11.
TOOLS: Final = ("coverage", "pytest", "pytest-asyncio", "typing_extensions")

PLATFORMS: Final = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")

PIP: Final = 300.0
TAR: Final = 60.0
"""Seconds, many times what each took."""


def pack(suite: str, arguments: Sequence[str], file: Path, *, coverage: bool) -> None:
    """Write the parcel, a tar file.

    Args:
        arguments: for pytest.
        coverage: the service is measured, which makes it take twice its time.

    Raises:
        GuestError: the wheel cannot be built, or the dependencies cannot be had.
    """
    with tempfile.TemporaryDirectory() as name:
        parcel = Path(name)
        wheel = _wheel(parcel / "wheels")
        shutil.copytree(_dependencies(wheel, PYTHON[suite]), parcel, dirs_exist_ok=True)
        _copy(("tests",), parcel)
        shutil.copy(TOP / "pyproject.toml", parcel)
        (parcel / "arguments").write_text("".join(f"{one}\n" for one in arguments))
        if coverage:
            (parcel / "coverage").touch()
        run("tar", "--create", "--owner=0", "--group=0", "--mode=u=rwX,go=rX", "-f", file,
            "-C", parcel, ".", deadline=TAR)  # fmt: skip


def _wheel(place: Path) -> Path:
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for file in METADATA:
            shutil.copy(TOP / file, tree)
        _copy(SOURCES, tree)
        offline = ("--no-deps", "--no-index", "--no-build-isolation")
        _pip("wheel", *offline, "--wheel-dir", place, tree)
    (wheel,) = place.iterdir()
    return wheel


def _copy(folders: Iterable[str], target: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in folders:
        shutil.copytree(TOP / name, target / name, ignore=ignored)


def _dependencies(wheel: Path, python: str) -> Path:
    """Give `wheels/` and `tools/` for the guest's Python, in the versions that are used here."""
    pins = sorted(
        f"{one.metadata['Name']}=={one.version}"
        for one in distributions()
        if one.metadata["Name"] != "storaged-conn"
    )
    needs = _needs(wheel)
    inputs = [python, *pins, *needs, *TOOLS]

    def make(made: Path) -> None:
        constraints = made / "constraints"
        constraints.write_text("\n".join(pins))
        target = [f"--platform={one}" for one in PLATFORMS]
        target += [f"--python-version={python}", f"--constraint={constraints}"]
        target += ["--only-binary=:all:"]
        _pip("download", *target, "--dest", made / "wheels", *needs)
        _pip("install", *target, "--target", made / "tools", *TOOLS)

    encoded = [one.encode() for one in inputs]
    return cached(f"wheels-{python}", [*encoded, *contents(Path(__file__))], make)


def _needs(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    found = re.findall(r"^Requires-Dist: (.+)$", text, re.MULTILINE)
    return [need for need in found if "extra ==" not in need]


def _pip(*argv: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *argv, deadline=PIP)
