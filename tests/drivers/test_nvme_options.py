# SPDX-License-Identifier: LGPL-2.1-or-later
import pytest

from storaged_conn.core.model import Target, Value
from storaged_conn.core.secret import Secret
from storaged_conn.drivers.base import part
from storaged_conn.drivers.nvme_host import Host
from storaged_conn.drivers.nvme_options import OPTIONS, fabrics_line, read_own
from storaged_conn.drivers.nvme_remote import Remote, read_uri
from storaged_conn.errors import InvalidArgumentError

NQN = "nqn.2014-08.org.example:a"
TCP = read_uri(f"nvme+tcp://10.0.0.1/{NQN}")
RDMA = read_uri(f"nvme+rdma://10.0.0.1/{NQN}")
FC = read_uri(f"nvme+fc://nn-0x2000001000000001:pn-0x1000001000000001/{NQN}")
HOST = Host("nqn.2014-08.org.example:host", "11111111-2222-3333-4444-555555555555")
KEY = Secret(b"DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:")

FULL: dict[str, Value] = {
    "host-nqn": "nqn.2014-08.org.example:other",
    "host-id": "6F2B8A43-2b5b-4f55-9f0e-3a6bd4e6f0c1",
    "host-traddr": "10.0.0.2",
    "host-iface": "eth0",
    "nr-io-queues": 4,
    "keep-alive": 7,
    "ctrl-loss-timeout": 30,
    "reconnect-delay": 3,
    "hdr-digest": True,
    "data-digest": True,
    "tls": True,
    "dhchap-secret": KEY,
    "dhchap-ctrl-secret": KEY,
    "force": True,
}


def line(remote: Remote, options: dict[str, Value]) -> str:
    uri = remote.uri
    target = Target(uri, *part(read_own(read_uri(uri), options)))
    return fabrics_line(target, read_uri(uri), read_uri(uri).host, HOST).decode()


def test_the_defaults_never_give_up_and_try_every_second() -> None:
    assert line(TCP, {}) == (
        f"transport=tcp,traddr=10.0.0.1,trsvcid=4420,nqn={NQN},hostnqn={HOST.nqn},"
        f"hostid={HOST.id},ctrl_loss_tmo=-1,reconnect_delay=1"
    )


def test_every_option_is_written_as_the_kernel_wants_it() -> None:
    assert FULL.keys() == OPTIONS.keys()
    words = line(TCP, FULL).split(",")
    key = KEY.reveal().decode()
    assert words[-13:] == [
        f"hostnqn={HOST.nqn}",
        f"hostid={HOST.id}",
        "ctrl_loss_tmo=30",
        "reconnect_delay=3",
        "nr_io_queues=4",
        "keep_alive_tmo=7",
        "host_traddr=10.0.0.2",
        "host_iface=eth0",
        "hdr_digest",
        "data_digest",
        "tls",
        f"dhchap_secret={key}",
        f"dhchap_ctrl_secret={key}",
    ]


def test_the_other_transports_have_their_own_addresses() -> None:
    assert line(RDMA, {}).startswith("transport=rdma,traddr=10.0.0.1,trsvcid=4420,nqn=")
    traddr = "nn-0x2000001000000001:pn-0x1000001000000001"
    assert line(FC, {}).startswith(f"transport=fc,traddr={traddr},nqn=")


def test_what_is_the_default_makes_no_other_target() -> None:
    given: dict[str, Value] = {"ctrl-loss-timeout": -1, "reconnect-delay": 1, "force": False}
    assert read_own(TCP, given) == {}
    assert read_own(TCP, FULL)["host-id"] == "6f2b8a43-2b5b-4f55-9f0e-3a6bd4e6f0c1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host-nqn", "host"),
        ("host-nqn", "nqn.2014-08.org.example:a,hostid=1"),
        ("host-id", "1"),
        ("host-traddr", "eth0"),
        ("host-traddr", "nn-0x1,nqn=x"),
        ("host-iface", "eth0,nqn=x"),
        ("host-iface", "a" * 16),
        ("nr-io-queues", 0),
        ("keep-alive", 0),
        ("ctrl-loss-timeout", -2),
        ("reconnect-delay", 0),
        ("dhchap-secret", Secret(b"hunter2")),
        ("dhchap-secret", Secret(KEY.reveal() + b",nqn=x")),
        ("dhchap-ctrl-secret", KEY),
    ],
)
def test_what_the_kernel_would_misread_is_refused_by_name(name: str, value: Value) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^options: '{name}'") as refusal:
        read_own(TCP, {name: value})
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("name", ["host-iface", "hdr-digest", "data-digest", "tls"])
def test_what_is_of_tcp_is_refused_for_others(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"'{name}' is for nvme"):
        read_own(RDMA, {name: FULL[name]})
