# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is built once and kept, named by a hash of all that it is made of.

A cache may be missing, never wrong: an entry appears whole, by a rename, and is never changed.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

KEPT: Final = 3
"""Entries of one name: those of a few branches, at half a GiB each."""


def contents(top: Path) -> Iterable[bytes]:
    """Give the names, the modes and the contents of a file, or of all files in a directory."""
    files = sorted(path for path in (top.rglob("*") if top.is_dir() else (top,)) if path.is_file())
    for path in files:
        yield f"{path.relative_to(top.parent)} {path.stat().st_mode & 0o111:o}".encode()
        yield path.read_bytes()


def cached(name: str, inputs: Iterable[bytes], make: Callable[[Path], None]) -> Path:
    """Give a directory that depends on the inputs alone, made now if it is not there.

    Args:
        make: fills an empty directory.
    """
    top = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "storaged-conn"
    top.mkdir(parents=True, exist_ok=True)
    place = top / f"{name}-{_hash(inputs)}"
    if not place.is_dir():
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=top) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            make(made)
            if not place.is_dir():  # somebody else may have been quicker
                made.rename(place)
    os.utime(place)
    _prune(top, name)
    return place


def _hash(inputs: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in inputs:
        digest.update(f"{len(part)}:".encode() + part)
    return digest.hexdigest()[:16]


def _prune(top: Path, name: str) -> None:
    entries = sorted(top.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    for path in entries[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
