# SPDX-License-Identifier: LGPL-2.1-or-later
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged_conn.core.model import Topic
from storaged_conn.sources.nvme import ALL, NvmeSource
from tests.sources.looks import Looks

NQN = "nqn.2014-08.org.example:a"


def places(sys: Path) -> list[Path]:
    return list(sys.glob("class/*/*"))


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    for place in ("class/nvme/nvme0", "class/nvme-subsystem/nvme-subsys0"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "subsysnqn").write_text(f"{NQN}\n")
    return tmp_path


@pytest.fixture
def source(sys: Path, looks: Looks) -> Iterator[NvmeSource]:
    source = NvmeSource(sys / "class")
    source.start(looks, looks.resync)
    yield source
    source.close()


@pytest.mark.parametrize("name", ["nvme0", "nvme-subsys0"])
def test_what_udev_tells_is_a_look_also_when_it_is_gone(
    source: NvmeSource, sys: Path, looks: Looks, name: str
) -> None:
    source.hear(name)
    os.rename(next(one for one in places(sys) if one.name == name), sys / "gone")
    source.hear(name)
    source.hear(name)
    assert looks.heard == [(Topic("nvme", NQN), False), (Topic("nvme", NQN), False), (ALL, False)]
