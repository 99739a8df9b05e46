# SPDX-License-Identifier: LGPL-2.1-or-later
"""Imports point one way, as drawn in the docstring of the package; and the core is pure."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import storaged_conn

PACKAGE: Final = Path(__file__).parents[1] / "storaged_conn"

MAY_IMPORT: Final = {
    "core": {"core", "errors"},
    "ctl": {"ctl", "bus", "names", "errors"},
}
"""The parts that may import less, or other things, than what is drawn below them."""

DOORS: Final = {"dbus_next": "bus", "subprocess": "system", "ctypes": "system"}
"""What only one part may import."""

PURE: Final = {
    *("abc", "collections", "dataclasses", "enum", "functools", "hmac", "itertools", "math"),
    *("operator", "re", "string", "types", "typing"),
}
"""What the core may import from the standard library: it knows no time, no chance and no world."""

IMPURE: Final = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}
"""The built-in functions that reach out of a program."""


def ranks() -> dict[str, int]:
    """Read `a, b < c < {d, e}` from the docstring: each name with the place of its layer."""
    _, _, drawing = (storaged_conn.__doc__ or "").partition("it:\n")
    layers = re.sub(r"\(.*?\)", "", drawing, flags=re.DOTALL).split("<")
    return {name: rank for rank, layer in enumerate(layers) for name in re.findall(r"\w+", layer)}


RANKS: Final = ranks()


def imported(tree: ast.AST) -> Iterator[str]:
    """Name all modules that are imported, anywhere in a file; a relative one begins with a dot."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module="storaged_conn", names=names, level=0):
                yield from (f"storaged_conn.{alias.name}" for alias in names)
            case ast.ImportFrom(module=module, level=level):
                yield "." * level + (module or "")
            case _:
                pass


def may_import(part: str, name: str) -> bool:
    top, _, rest = name.partition(".")
    other = rest.partition(".")[0]
    if top != "storaged_conn":
        return top in PURE if part == "core" else bool(top) and DOORS.get(top, part) == part
    if part in MAY_IMPORT:
        return other in MAY_IMPORT[part]
    return part == other or RANKS.get(other, len(RANKS)) < RANKS.get(part, -1)


def faults(part: str, source: str) -> list[str]:
    """Name what a file in a part of the package imports, or calls, and must not."""
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    calls = sorted(names & IMPURE) if part == "core" else []
    return [name for name in imported(tree) if not may_import(part, name)] + calls


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES: Final = [path for path in sorted(PACKAGE.rglob("*.py")) if part_of(path) != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_it_may(path: Path) -> None:
    assert faults(part_of(path), path.read_text()) == []


def test_the_package_itself_imports_nothing() -> None:
    assert list(imported(ast.parse((PACKAGE / "__init__.py").read_text()))) == []


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in FILES} <= {*RANKS, "ctl"}


def test_the_drawing_is_read() -> None:
    assert RANKS["errors"] == RANKS["names"] == 0
    assert RANKS["drivers"] == RANKS["sources"] == RANKS["store"]
    order = ["names", "core", "system", "bus", "store", "runner", "manager", "front", "daemon"]
    assert [RANKS[part] for part in order] == sorted({RANKS[part] for part in order})
    assert max(RANKS, key=RANKS.__getitem__) == "__main__"
    assert "ctl" not in RANKS


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("core", "import time"),
        ("core", "from datetime import datetime"),
        ("core", "import random"),
        ("core", "import os.path"),
        ("core", "def read():\n    import socket"),
        ("core", "import asyncio"),
        ("core", "import logging"),
        ("core", "import pyudev"),
        ("core", "text = open('/proc/mounts').read()"),
        ("core", "clock = __import__('time')"),
        ("core", "from storaged_conn.names import ROOT"),
        ("core", "from storaged_conn.system import run"),
        ("names", "from storaged_conn.errors import ConnError"),
        ("errors", "from storaged_conn.core.model import Value"),
        ("system", "from storaged_conn.bus.wire import Message"),
        ("drivers", "from storaged_conn.sources.mounts import MountSource"),
        ("sources", "from storaged_conn import store"),
        ("runner", "import storaged_conn.manager"),
        ("manager", "if TYPE_CHECKING:\n    from storaged_conn.front.tree import Tree"),
        ("daemon", "import storaged_conn.__main__"),
        ("front", "from storaged_conn.ctl.show import table"),
        ("front", "from storaged_conn.nonsense import nothing"),
        ("ctl", "from storaged_conn.core.model import Value"),
        ("ctl", "from storaged_conn.front import objects"),
        ("front", "from dbus_next import Variant"),
        ("ctl", "import dbus_next.aio"),
        ("drivers", "import subprocess"),
        ("drivers", "from . import base"),
        ("drivers", "from .base import Driver"),
    ],
)
def test_the_rule_bites(part: str, source: str) -> None:
    assert len(faults(part, source)) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("core", "from math import inf\nfrom collections.abc import Mapping"),
        ("core", "from storaged_conn.core.backoff import Allowance"),
        ("core", "from storaged_conn.errors import ConnError"),
        ("bus", "from dbus_next.aio import MessageBus\nimport asyncio"),
        ("system", "import subprocess\nfrom storaged_conn.core.model import Topic"),
        ("drivers", "from storaged_conn.drivers.base import Driver"),
        ("sources", "import pyudev\nfrom storaged_conn.system import mountinfo"),
        ("daemon", "from storaged_conn import errors, manager, names, store"),
        ("ctl", "from storaged_conn import bus, errors, names\nimport storaged_conn.ctl.show"),
    ],
)
def test_what_points_downwards_passes(part: str, source: str) -> None:
    assert faults(part, source) == []
