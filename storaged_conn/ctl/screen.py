# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text for a terminal: escaped, cut to its width, and painted.

What others chose (ids, URIs, messages) is escaped before it is shown, so that it can neither move
the cursor, nor forge a line, nor turn the direction of writing. The escapes are those of bash's
$'...', so that what is shown can be typed.
"""

import os
import shutil
import unicodedata
from collections.abc import Sequence
from typing import Final, NamedTuple, TextIO

GAP: Final = "  "
ELLIPSIS: Final = "…"

BOLD, RED, GREEN, YELLOW = "1", "31", "32", "33"
"""Source: ECMA-48, 8.3.117, SGR."""

_SHORT: Final = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_COMBINING: Final = frozenset({"Mn", "Me"})
_WIDE: Final = frozenset({"W", "F"})


class Screen(NamedTuple):
    """What text is for: no width where nothing need be cut, for a file or a pipe."""

    width: int | None = None
    colour: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> "Screen":
        """Look at where a stream goes. Source of NO_COLOR: no-color.org."""
        if not stream.isatty():
            return cls()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(shutil.get_terminal_size().columns, not plain)

    def paint(self, text: str, colour: str) -> str:
        """Colour a text, where there are colours."""
        return f"\x1b[{colour}m{text}\x1b[m" if self.colour and colour and text else text


class Column(NamedTuple):
    """A column's title, and the width from which on the others shrink first."""

    title: str
    floor: int


class Cell(NamedTuple):
    """A text as others chose it, and its colour."""

    text: str
    colour: str = ""


def escape(text: str) -> str:
    """Make visible what a terminal would act on, or would not show."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(one if one.isprintable() and one != "\\" else _escaped(one) for one in text)


def width(text: str) -> int:
    """Count the places that a text takes. Source: Unicode Standard Annex 11."""
    return len(text) if text.isascii() else sum(map(_places, text))


def clip(text: str, places: int) -> str:
    """Cut a text to some places, of which the ellipsis takes the last; 0 leave nothing."""
    if width(text) <= places:
        return text
    kept, left = "", places - width(ELLIPSIS)
    for one in text:
        left -= _places(one)
        if left < 0:
            break
        kept += one
    return kept + ELLIPSIS if places > 0 else ""


def fit(natural: Sequence[int], floors: Sequence[int], available: int) -> list[int]:
    """Shrink columns until they fit.

    Args:
        natural: the widths that they want.
        floors: the widths that they keep as long as another one is above its own.
        available: places for all of them together.
    """
    widths = [min(one, max(available, 0)) for one in natural]
    while sum(widths) > max(available, 0):
        above = [have - floor for have, floor in zip(widths, floors, strict=True)]
        spare = above if max(above) > 0 else widths
        widths[spare.index(max(spare))] -= 1
    return widths


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], screen: Screen) -> str:
    """Set rows under titles, no line longer than the screen is wide."""
    lines = [[Cell(column.title, BOLD) for column in columns]]
    lines += [[Cell(escape(cell.text), cell.colour) for cell in row] for row in rows]
    widths = [max(width(line[place].text) for line in lines) for place in range(len(columns))]
    if screen.width is not None:
        available = screen.width - len(GAP) * (len(columns) - 1)
        widths = fit(widths, [column.floor for column in columns], available)
    return "\n".join(_line(line, widths, screen) for line in lines)


def _line(cells: Sequence[Cell], widths: Sequence[int], screen: Screen) -> str:
    line = ""
    for cell, places in zip(cells, widths, strict=True):
        text = clip(cell.text, places)
        line += screen.paint(text, cell.colour) + " " * (places - width(text)) + GAP
    return line.rstrip()


def _escaped(one: str) -> str:
    if one in _SHORT:
        return _SHORT[one]
    if one.isascii():  # beyond it, \x would be a byte to the shell
        return f"\\x{ord(one):02x}"
    return f"\\U{ord(one):08x}" if ord(one) >> 16 else f"\\u{ord(one):04x}"


def _places(one: str) -> int:
    if unicodedata.category(one) in _COMBINING:
        return 0
    return 2 if unicodedata.east_asian_width(one) in _WIDE else 1
