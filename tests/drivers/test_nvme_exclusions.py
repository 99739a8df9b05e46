# SPDX-License-Identifier: LGPL-2.1-or-later
from pathlib import Path

import pytest

from storaged_conn.drivers.nvme_exclusions import excluded_by

NQN = "nqn.2014-08.org.example:a"
CONNECTION = {"transport": "tcp", "traddr": "fd09::2", "trsvcid": "4420", "nqn": NQN}


def write(etc: Path, *entries: str, section: str = "[exclusions]") -> None:
    lines = [f"exclusion = {entry}" for entry in entries]
    (etc / "exclusions.conf").write_text("\n".join(["# a comment", section, *lines]))


@pytest.mark.parametrize(
    "entry",
    [
        f"nqn={NQN}",
        "transport=tcp",
        "transport = tcp ; traddr = FD09:0:0::2 ; trsvcid=4420",
    ],
)
def test_what_all_fields_of_an_entry_agree_with_is_excluded(tmp_path: Path, entry: str) -> None:
    write(tmp_path, "nqn=nqn.2014-08.org.example:other", entry)
    assert excluded_by(CONNECTION, tmp_path) == entry


@pytest.mark.parametrize(
    "entry",
    [
        "",
        ";",
        f"nqn={NQN};trsvcid=8009",
        f"nqn={NQN};host-iface=eth0",
        f"subsysnqn={NQN}",
        f"nqn={NQN};host_traddr=10.0.0.1",
    ],
)
def test_an_entry_that_says_nothing_or_something_else_excludes_nothing(
    tmp_path: Path, entry: str
) -> None:
    write(tmp_path, entry)
    assert not excluded_by(CONNECTION, tmp_path)


def test_entries_count_in_their_section_and_in_drop_ins(tmp_path: Path) -> None:
    write(tmp_path, f"nqn={NQN}", section="[future]")
    assert not excluded_by(CONNECTION, tmp_path)
    (tmp_path / "exclusions.conf.d").mkdir()
    (tmp_path / "exclusions.conf.d/lab.conf").write_text(f"[exclusions]\nexclusion = nqn={NQN}\n")
    assert excluded_by(CONNECTION, tmp_path)


def test_no_file_excludes_nothing(tmp_path: Path) -> None:
    assert not excluded_by(CONNECTION, tmp_path)
    (tmp_path / "exclusions.conf").mkdir()
    assert not excluded_by(CONNECTION, tmp_path)
