# SPDX-License-Identifier: LGPL-2.1-or-later
import pytest

from storaged_conn.drivers.nvme_remote import Remote, read_server_uri, read_uri, same_address
from storaged_conn.errors import InvalidArgumentError

NQN = "nqn.2014-08.org.example:a"


@pytest.mark.parametrize(
    ("uri", "remote", "canonical"),
    [
        ("nvme+tcp://Host.Example:4420/" + NQN, Remote("tcp", "host.example", 4420, NQN), ""),
        ("nvme+tcp://10.0.0.1/" + NQN, Remote("tcp", "10.0.0.1", 4420, NQN), ""),
        ("nvme+tcp://[FD09:0::2]:8009/" + NQN, Remote("tcp", "fd09::2", 8009, NQN), ""),
        ("NVME+RDMA://10.0.0.1/" + NQN, Remote("rdma", "10.0.0.1", 4420, NQN), ""),
        (
            "nvme+fc://nn-0x20000010AB579EF6:pn-0x100000109b579ef6/" + NQN,
            Remote("fc", "nn-0x20000010ab579ef6:pn-0x100000109b579ef6", 0, NQN),
            "nvme+fc://nn-0x20000010ab579ef6:pn-0x100000109b579ef6/" + NQN,
        ),
        (
            "nvme+tcp://h/nqn.2014-08.org.example:%C3%A9",
            Remote("tcp", "h", 4420, "nqn.2014-08.org.example:é"),
            "nvme+tcp://h/nqn.2014-08.org.example:%C3%A9",
        ),
    ],
)
def test_a_uri_is_read_in_all_its_spellings(uri: str, remote: Remote, canonical: str) -> None:
    found = read_uri(uri)
    assert found == remote
    assert read_uri(found.uri) == found
    assert not canonical or found.uri == canonical


@pytest.mark.parametrize(
    "uri",
    [
        "nvme+tcp:host",
        "nvme+tcp://host",
        "nvme+tcp://host/",
        "nvme+tcp://host/iqn.2014-08.org.example:a",
        "nvme+tcp://host/nqn.2014-08.org.example:a,hostnqn=b",
        "nvme+tcp://host/nqn.2014-08.org.example:a%2Cctrl_loss_tmo=0",
        "nvme+tcp://host/nqn.2014-08.org.example:a%0a",
        "nvme+tcp://host/nqn.2014-08.org.example:a/b",
        "nvme+tcp://host/" + NQN + "?x",
        "nvme+tcp://host/nqn.2014-08.org.example:" + 220 * "a",
        "nvme+tcp://ho,st/" + NQN,
        "nvme+tcp://host:0/" + NQN,
        "nvme+fc://host/" + NQN,
        "nvme+tcp://host/nqn.2014-08.org.nvmexpress.discovery",
    ],
)
def test_what_is_none_is_refused_with_the_word_uri(uri: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^uri: "):
        read_uri(uri)


def test_a_server_alone_is_read_for_discovery() -> None:
    assert read_server_uri("nvme+tcp://host", 8009) == Remote("tcp", "host", 8009, "")
    assert read_server_uri("nvme+tcp://host:4420/", 8009) == Remote("tcp", "host", 4420, "")


def test_an_address_is_the_same_however_it_is_written() -> None:
    assert same_address("fd09:0:0::2", "FD09::2%veth0")
    assert same_address("nn-0xAB:pn-0x1", "nn-0xab:pn-0x1")
    assert not same_address("10.0.0.1", "10.0.0.2")
