# SPDX-License-Identifier: LGPL-2.1-or-later
"""python -m tests.fuzz SECONDS [NAME...]: looks for input that a parser does not expect.

The parsers (parsers.py) share the time; each has a process of its own, with the lowest priority,
in which libFuzzer, by atheris, changes the samples towards what runs new lines of the package.
What it finds is kept in tests/data/fuzz/NAME, where test_parsers.py reads it from then on: repair
the parser, give the file a name that says what it is, and commit both.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.fuzz.parsers import PARSERS, samples

DATA: Final = Path(__file__).parents[1] / "data" / "fuzz"

MAX_INPUT: Final = 4096
"""Bytes of an input; what must be refused for its length is among the samples."""

GRACE: Final = 60
"""Seconds to begin and to end."""

MEMORY_MB: Final = 1024
"""What more than this much memory for one input is called a finding."""

TOLD: Final = 4000
"""Characters of what libFuzzer says of a finding: the traceback and the input."""

SLOW: Final = 20
"""Seconds for one input that are a finding."""


def main() -> int:
    """Fuzz what the command line names, or one parser in this process; returns the exit status."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Fuzzes the parsers.")
    parser.add_argument("seconds", type=int, help="for all of them together")
    parser.add_argument("name", nargs="*", help=f"of {', '.join(PARSERS)}; default: all")
    options = parser.parse_args()
    names = options.name or list(PARSERS)
    if unknown := set(names) - set(PARSERS):
        parser.error(f"there is no parser {', '.join(sorted(unknown))}")
    each = max(options.seconds // len(names), 1)
    found = [name for name in names if not fuzz(name, each)]
    print(f"findings: {', '.join(found)}; see {DATA}" if found else "nothing was found")
    return 1 if found else 0


def fuzz(name: str, seconds: int) -> bool:
    """Fuzz one parser in a child; returns whether nothing was found."""
    findings = DATA / name
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="storaged-fuzz-") as scratch:
        for number, sample in enumerate(samples(name)):
            (Path(scratch) / str(number)).write_bytes(sample)
        argv = [
            *("nice", "-n", "19", sys.executable, "-m", "tests.fuzz.one", name),
            *(f"-max_total_time={seconds}", f"-max_len={MAX_INPUT}", f"-timeout={SLOW}"),
            *(f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={findings}/", scratch),
        ]
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=seconds + GRACE + SLOW, check=False,
        )  # fmt: skip
    said = done.stdout.decode(errors="replace")
    runs = re.search(r"^Done (\d+) runs", said, re.MULTILINE)
    print(f"{name:12}{runs[1] if runs else 'some':>12} inputs in {seconds} s", flush=True)
    if done.returncode:
        print(said[-TOLD:], flush=True)
    if not any(findings.iterdir()):
        findings.rmdir()
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
