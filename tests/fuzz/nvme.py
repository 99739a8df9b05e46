# SPDX-License-Identifier: LGPL-2.1-or-later
"""What NVMe subsystems say, what the kernel shows of controllers, and files say of the host."""

import asyncio
import contextlib
import re
import tempfile
from functools import cache
from pathlib import Path
from struct import pack
from typing import Final, cast

from storaged_conn.core.model import Target
from storaged_conn.drivers.nvme_exclusions import excluded_by
from storaged_conn.drivers.nvme_host import Host, read_host
from storaged_conn.drivers.nvme_options import fabrics_line
from storaged_conn.drivers.nvme_registry import OWN, Registry
from storaged_conn.drivers.nvme_remote import read_uri
from storaged_conn.drivers.nvme_server import describe
from storaged_conn.drivers.nvme_table import Table
from storaged_conn.errors import AttemptError, UnusableError
from storaged_conn.system.nvme import Controllers
from storaged_conn.system.nvme_tcp import Entry, Who, _Talk
from storaged_conn.system.sentinel import Address
from tests.drivers.nfs_world import FakeServers

NQN: Final = "nqn.2014-08.org.example:a"
HOST: Final = Host("nqn.2014-08.org.example:h", "11111111-2222-3333-4444-555555555555")
SERVER: Final = Address("192.0.2.1", 4420)

WORDS: Final = re.compile(
    rb"(transport|traddr|trsvcid|nqn|hostnqn|hostid|ctrl_loss_tmo|reconnect_delay|nr_io_queues"
    rb"|keep_alive_tmo|host_traddr|host_iface|dhchap_secret|dhchap_ctrl_secret)=[^,\s\0]+"
    rb"|hdr_digest|data_digest|tls"
)

GREETING: Final = pack("<BBBBIHBBI112x", 1, 0, 128, 0, 128, 0, 0, 0, 8192)
ENTRY: Final = pack("<BBBBHHHH20x32s192x256s256s256x", 3, 1, 2, 0, 1, 1, 32, 0, b"4420", *[b""] * 2)


def answer(result: int = 0, status: int = 0, data: bytes = b"") -> bytes:
    """Give the PDUs that answer a command."""
    head = pack("<BBBBIHHII4x", 7, 4, 24, 24, 24 + len(data), 1, 0, 0, len(data)) if data else b""
    return head + data + pack("<BBBBIQHHHH", 5, 0, 24, 0, 24, result, 0, 0, 1, status << 1)


ENABLED: Final = GREETING + answer() + answer() + answer(1)
EMPTY: Final = answer(data=pack("<QQ1008x", 7, 0))
ONE: Final = answer(data=pack("<QQ1008x", 7, 1))

ANSWERS: Final = (
    *(ENABLED + EMPTY + EMPTY, ENABLED + ONE + answer(data=ENTRY) + ONE),
    *(GREETING + answer(1 << 16 | 256, 0x182), GREETING + answer(1 << 16 | 512, 0x184)),
)

CONTROLLERS: Final = (
    f"tcp\x1etraddr=10.0.0.1,trsvcid=4420\x1e{NQN}\x1eh\x1elive\x1e5\x1e259:1",
    f"fc\x1etraddr=nn-0x2000001000000001:pn-0x1000001000000001\x1e{NQN}\x1eh\x1elive",
    "tcp\x1etraddr=fd09::2%eth0,trsvcid=x\x1e(efault)\x1eh\x1edeleting",
)

FILES: Final = (
    "[exclusions]\nexclusion = transport=tcp;traddr=192.0.2.1\nexclusion=",
    f"{HOST.nqn}\n",
    "7 nvme+tcp://h/nqn.a\n",
)


def check_line(target: Target) -> None:
    """See that the kernel takes each word for what it is, and none twice."""
    words = fabrics_line(target, read_uri(target.uri), "192.0.2.1", HOST).split(b",")
    assert all(map(WORDS.fullmatch, words)), words
    assert len({word.partition(b"=")[0] for word in words}) == len(words)


def feed_answers(data: bytes) -> None:
    """All that a discovery service says, from its greeting on, or after it."""
    for said in (data, ENABLED + data, ENABLED + ONE + data):
        with contextlib.suppress(AttemptError, asyncio.IncompleteReadError):
            for entry in _loop().run_until_complete(_read(said)):
                if found := describe(entry):
                    assert str(found["uri"]).isascii()
                    assert found["kind"] == "referral" or read_uri(str(found["uri"])).nqn


async def _read(said: bytes) -> list[Entry]:
    reader = asyncio.StreamReader()
    reader.feed_data(said)
    reader.feed_eof()
    talk = _Talk(SERVER, reader, cast("asyncio.StreamWriter", Sink()))
    await talk.greet()
    return await talk.entries(Who(*HOST, NQN))


class Sink:
    """Where our own words go."""

    def write(self, data: bytes) -> None:
        """Forget them."""


def feed_controllers(data: bytes) -> None:
    """TRANSPORT FIELD ADDRESS FIELD NQN FIELD HOST FIELD STATE FIELD KATO FIELD DEV."""
    ground = Path(_ground().name)
    top, block = "class/nvme/nvme0", "class/block/nvme0n1"
    attributes = ("transport", "address", "subsysnqn", "hostnqn", "state", "kato")
    paths = (*(f"{top}/{name}" for name in attributes), f"{block}/dev")
    (ground / top / "nvme0c0n1").mkdir(parents=True, exist_ok=True)
    for path, value in zip(paths, [*data.split(b"\x1e", 6), *[b""] * 7], strict=False):
        (ground / path).parent.mkdir(parents=True, exist_ok=True)
        (ground / path).write_bytes(value)
    controllers = Controllers(ground, ground / "udev", ground / "control")
    table = Table(controllers, Registry(ground / "registry"), FakeServers(), ground / "plans")
    for foreign in table.foreign(()):
        assert foreign.uri.isascii()
        assert foreign.uri.isprintable()
        assert foreign.present.name == "nvme0"


def feed_files(data: bytes) -> None:
    """/etc/nvme/exclusions.conf, hostnqn or hostid, or an entry of the registry."""
    ground = Path(_ground().name)
    entry = ground / "entries/nvme0"
    for file in (ground / "exclusions.conf", ground / "nvme/hostnqn", ground / "nvme/hostid"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
    entry.mkdir(parents=True, exist_ok=True)
    (entry / "owner").write_bytes(data)
    (entry / OWN).write_bytes(data)
    assert excluded_by({"transport": "rdma"}, ground) in data.decode(errors="replace")
    with contextlib.suppress(UnusableError):
        host = read_host(Target(f"nvme+tcp://h/{NQN}"), ground)
        assert WORDS.fullmatch(f"hostnqn={host.nqn}".encode())
    feed_controllers(CONTROLLERS[0].encode())
    registry = Registry(ground / "entries")
    for one in Controllers(ground, ground / "udev", ground / "control").all():
        assert not registry.is_ours(one) or registry.uri(one)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def _ground() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="storaged-controllers-")
