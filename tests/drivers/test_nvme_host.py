# SPDX-License-Identifier: LGPL-2.1-or-later
from pathlib import Path
from uuid import UUID

import pytest

from storaged_conn.core.model import Target
from storaged_conn.drivers.nvme_host import Host, read_host
from storaged_conn.errors import UnusableError

URI = "nvme+tcp://h/nqn.2014-08.org.example:a"
ID = "11111111-2222-3333-4444-555555555555"
BY_UUID = f"nqn.2014-08.org.nvmexpress:uuid:{ID}"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "nvme").mkdir()
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    return tmp_path


def test_without_files_it_is_made_of_the_machines_id_and_stays(etc: Path) -> None:
    host = read_host(Target(URI), etc)
    assert host == read_host(Target(URI), etc)
    assert host.nqn == f"nqn.2014-08.org.nvmexpress:uuid:{UUID(host.id)}"
    assert "0123456789abcdef" not in host.nqn.replace("-", "")
    (etc / "machine-id").write_text("f" * 32)
    assert read_host(Target(URI), etc) != host


def test_the_hosts_files_count(etc: Path) -> None:
    (etc / "nvme/hostnqn").write_text("nqn.2014-08.org.example:host\n")
    (etc / "nvme/hostid").write_text(f"{ID}\n")
    assert read_host(Target(URI), etc) == Host("nqn.2014-08.org.example:host", ID)


def test_an_id_is_that_of_its_nqn_where_no_file_has_one(etc: Path) -> None:
    (etc / "nvme/hostnqn").write_text(BY_UUID)
    assert read_host(Target(URI), etc) == Host(BY_UUID, ID)


def test_another_nqn_never_gets_the_id_of_the_hosts_own(etc: Path) -> None:
    (etc / "nvme/hostnqn").write_text(BY_UUID)
    (etc / "nvme/hostid").write_text(ID)
    options = (("host-nqn", "nqn.2014-08.org.example:other"),)
    host = read_host(Target(URI, options), etc)
    assert host.nqn == "nqn.2014-08.org.example:other"
    assert host.id not in {ID, ""}
    assert host == read_host(Target(URI, options), etc)


def test_what_is_given_counts(etc: Path) -> None:
    other = "66666666-2222-3333-4444-555555555555"
    options = (("host-id", other), ("host-nqn", BY_UUID))
    assert read_host(Target(URI, options), etc) == Host(BY_UUID, other)


@pytest.mark.parametrize(
    ("name", "text"),
    [("hostnqn", "nqn.a,tls"), ("hostnqn", "nqn.a\nb"), ("hostnqn", "x" * 224), ("hostid", "7")],
)
def test_a_file_with_something_else_is_named(etc: Path, name: str, text: str) -> None:
    (etc / "nvme/hostnqn").write_text("nqn.2014-08.org.example:host\n")
    (etc / "nvme" / name).write_text(text)
    with pytest.raises(UnusableError, match=name):
        read_host(Target(URI), etc)
