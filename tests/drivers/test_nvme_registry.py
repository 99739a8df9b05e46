# SPDX-License-Identifier: LGPL-2.1-or-later
import os
from pathlib import Path

import pytest

from storaged_conn.drivers.nvme_registry import Registry
from storaged_conn.system.nvme import Controller

URI = "nvme+tcp://10.0.0.1/nqn.2014-08.org.example:a"


def controller(serial: int = 7) -> Controller:
    return Controller("nvme0", serial, "tcp", {}, "nqn.2014-08.org.example:a", "")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "nvme/registry"


@pytest.fixture
def registry(top: Path) -> Registry:
    return Registry(top)


def test_nobody_owns_what_is_not_there(registry: Registry) -> None:
    assert registry.owner(controller()) == ""
    assert not registry.is_ours(controller())
    registry.tidy(lambda _: 0)


def test_what_we_claim_is_ours_and_others_can_read_it(registry: Registry, top: Path) -> None:
    mask = os.umask(0o077)
    try:
        registry.claim(controller(), URI)
    finally:
        os.umask(mask)
    assert registry.is_ours(controller())
    assert registry.uri(controller()) == URI
    assert (top / "nvme0/owner").read_text() == "storaged-conn\n"
    assert (top / "nvme0/seqnum").read_text().strip().isdecimal()
    for directory in (top.parent, top, top / "nvme0"):
        assert directory.stat().st_mode & 0o777 == 0o755
    for file in (top / "nvme0").iterdir():
        assert file.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in top.iterdir()] == ["nvme0"]


def test_an_entry_of_one_that_is_gone_says_nothing_about_the_next(registry: Registry) -> None:
    registry.claim(controller(7), URI)
    assert registry.owner(controller(8)) == ""
    assert registry.uri(controller(8)) == ""
    registry.tidy(lambda _: 7)
    assert registry.is_ours(controller(7))
    registry.claim(controller(8), URI)
    assert registry.is_ours(controller(8))


def test_what_others_own_stays_theirs(registry: Registry, top: Path) -> None:
    (top / "nvme0").mkdir(parents=True)
    (top / "nvme0/owner").write_text("stas\n")
    assert registry.owner(controller()) == "stas"
    registry.tidy(lambda _: 0)
    assert (top / "nvme0/owner").exists()


@pytest.mark.parametrize("now", [0, 8])
def test_what_is_gone_is_forgotten(registry: Registry, top: Path, now: int) -> None:
    registry.claim(controller(), URI)
    registry.tidy({"nvme0": now}.__getitem__)
    assert list(top.iterdir()) == []
