# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual pages say what the code does, and can be read."""

import re
import subprocess
from pathlib import Path

import pytest

from storaged_conn.drivers import nfs_options

PAGES = sorted((Path(__file__).parents[1] / "man").iterdir())


def page(name: str) -> str:
    (path,) = (one for one in PAGES if one.name == name)
    return path.read_text().replace("\\-", "-")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_has_no_mistakes(path: Path) -> None:
    done = subprocess.run(
        ["groff", "-ww", "-man", "-Tutf8", path], capture_output=True, text=True, check=True
    )
    assert not done.stderr
    assert path.stem.upper() in done.stdout


def test_every_nfs_option_is_explained_with_its_type() -> None:
    explained = re.findall(r'^\.BR ([a-z-]+) " \((\w+)\)"$', page("storaged-conn-nfs.5"), re.M)
    assert dict(explained) == nfs_options.OPTIONS


def test_every_flag_version_and_flavour_of_nfs_is_named() -> None:
    words = set(re.findall(r"[\w.-]*\w", page("storaged-conn-nfs.5")))
    for names in (nfs_options.FLAGS, nfs_options.VERSIONS, nfs_options.FLAVOURS):
        assert set(names) <= words
    assert set(nfs_options.STALE) <= words
