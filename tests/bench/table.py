# SPDX-License-Identifier: LGPL-2.1-or-later
"""Figures as a table that can be pasted into the README."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

HEADINGS: Final = ("figure", "median", "min", "max", "n", "goal")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        unit: of the values, such as "ms"; empty for ratios.
        goal: what the project wants of the median, where it wants something.
    """

    figure: str
    values: Sequence[float]
    unit: str = ""
    goal: str = ""

    def cells(self) -> tuple[str, ...]:
        """Write it as the columns of HEADINGS."""
        numbers = (median(self.values), min(self.values), max(self.values))
        return (self.figure, *map(self._write, numbers), str(len(self.values)), self.goal)

    def _write(self, number: float) -> str:
        digits = 2 if number < 10 else 1 if number < 100 else 0
        return f"{number:.{digits}f} {self.unit}".rstrip()


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Divide figures that were measured side by side, pair by pair."""
    return [one / other for one, other in zip(over, under, strict=True)]


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print a table in Markdown, with the machine that it is from."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    written = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    written.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print(f"\n### {title}\n\n{_machine()}\n", *written, "", sep="\n", flush=True)


def _machine() -> str:
    python, cpus = platform.python_version(), os.cpu_count()
    return f"Linux {platform.release()}, Python {python}, {cpus} processors."
