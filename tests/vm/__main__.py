# SPDX-License-Identifier: LGPL-2.1-or-later
"""python -m tests.vm: runs the tests in guest/ in a Debian guest; see README.md."""

import argparse
import fcntl
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from tests.vm import machine
from tests.vm.host import GuestError, run, say
from tests.vm.image import PYTHON, image
from tests.vm.parcel import TOP, pack

COVERAGE: Final = 120.0
"""Seconds, many times what it takes."""


def main() -> int:
    """Do what the command line says; gives the exit status."""
    parser = argparse.ArgumentParser(
        "python -m tests.vm", description="Runs tests in a guest.", allow_abbrev=False
    )
    parser.add_argument("--suite", choices=PYTHON, default="bookworm", help="the guest's Debian")
    parser.add_argument("--results", type=Path, help="a new directory; default: build/vm/SUITE")
    parser.add_argument("--console", action="store_true", help="give a shell instead of the tests")
    parser.add_argument("--coverage", action="store_true", help="measure what the service executes")
    parser.epilog = "All other arguments are pytest's, such as -k NAME."
    options, arguments = parser.parse_known_args()
    began = time.monotonic()
    try:
        with _place(options.results, options.suite) as results:
            _run(options, arguments, results)
            if options.console:
                return 0
            return _conclude(options.suite, results, time.monotonic() - began)
    except GuestError as error:
        say(f"FAILED: {error}")
        return 1


@contextmanager
def _place(wanted: Path | None, suite: str) -> Iterator[Path]:
    """Give an empty directory for the results, which nobody else gets meanwhile."""
    place = (wanted or TOP / "build" / "vm" / suite).absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GuestError(f"somebody uses {place}; give another by --results") from None
        if not wanted:
            shutil.rmtree(place, ignore_errors=True)
        try:
            place.mkdir()
        except FileExistsError:
            raise GuestError(f"{place} exists; results are not mixed with other files") from None
        yield place


def _run(options: argparse.Namespace, arguments: list[str], results: Path) -> None:
    ready = image(options.suite)
    with tempfile.TemporaryDirectory() as scratch:
        parcel = Path(scratch) / "parcel.tar"
        pack(options.suite, arguments, parcel, coverage=options.coverage)
        say(f"booting {options.suite}; arguments of pytest: {shlex.join(arguments) or 'none'}")
        (machine.console if options.console else machine.boot)(ready, parcel, results)


def _conclude(suite: str, results: Path, seconds: float) -> int:
    """Print what came of all boots, in the words of pytest; gives the exit status.

    Raises:
        GuestError: it ended otherwise than by the end of the tests.
    """
    counts = Counter(_outcomes(results))
    status = (results / "status").read_text().strip()
    if not status.isdecimal():
        raise GuestError(f"{status}\n{machine.tail(results / 'console', boots=2)}\nsee {results}")
    _report_coverage(results)
    say(f"{results} has report, console, journal and more")
    if status != "0":
        say(f"FAILED: pytest ended with status {status}")
    if "skipped" in counts:
        say("FAILED: this machine was made for the tests, so none may be skipped")
    words = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    sys.stdout.write(f"==== {words or 'no tests ran'} in {seconds:.2f}s ({suite} guest) ====\n")
    return 0 if status == "0" and set(counts) == {"passed"} else 1


def _outcomes(results: Path) -> Iterator[str]:
    """Give what came of each test. Source: pytest's junitxml.py: children of testcase."""
    names = {"failure": "failed", "error": "error", "skipped": "skipped"}
    for file in sorted(results.glob("junit-*.xml")):
        for case in ET.parse(file).iter("testcase"):
            found = [names[child.tag] for child in case if child.tag in names]
            yield found[0] if found else "passed"


def _report_coverage(results: Path) -> None:
    """Turn the guest's data into those of this tree: results/coverage, and a report beside it."""
    parts = list(results.glob("coverage.*"))
    if parts:
        tool = (sys.executable, "-m", "coverage")
        where = (f"--rcfile={Path(__file__).parent / 'coverage.ini'}",)
        data = f"--data-file={results / 'coverage'}"
        run(*tool, "combine", *where, data, *parts, deadline=COVERAGE)
        run(*tool, "html", *where, data, "-d", results / "html", deadline=COVERAGE)


if __name__ == "__main__":
    sys.exit(main())
