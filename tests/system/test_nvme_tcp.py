# SPDX-License-Identifier: LGPL-2.1-or-later
"""Against a server that speaks as much NVMe/TCP as is needed; the kernel's is in the guest."""

import asyncio
from itertools import count
from struct import pack, unpack_from

import pytest

from storaged_conn.errors import (
    AccessDeniedError,
    AttemptError,
    BusyError,
    NotOfferedError,
    ProtocolError,
    ServerRefusedError,
    TimedOutError,
    TroubleError,
)
from storaged_conn.system import nvme_tcp
from storaged_conn.system.nvme_tcp import Entry, Who, discover, knock
from storaged_conn.system.sentinel import Address
from tests.nvme_target import Answer, Subsystem, serving

WHO = Who(
    "nqn.2014-08.org.example:host",
    "11111111-2222-3333-4444-555555555555",
    "nqn.2014-08.org.example:a",
)


def entry(kind: int, transport: int, nqn: str, address: str, service: str) -> bytes:
    head = pack("<BBBB28x", transport, 1, kind, 0)
    return head + pack("32s192x256s256s256x", *(one.encode() for one in (service, nqn, address)))


def log(*entries: bytes) -> bytes:
    whole = pack("<QQ1008x", 1, len(entries)) + b"".join(entries)
    return whole + bytes(-len(whole) % 4096)


def lets_in(result: int = 1) -> Answer:
    return lambda command, data: (0, result, b"")


async def test_who_we_are_is_said_as_the_specification_wants_it() -> None:
    subsystem = Subsystem(lets_in())
    async with serving(subsystem) as server:
        assert not await knock(server, WHO)
    ((command, data),) = subsystem.commands
    assert (command[0], command[1], command[4]) == (0x7F, 0x40, 0x01)
    assert unpack_from("<QI3xB", command, 24) == (0, 1024, 1)
    assert unpack_from("<HHH", command, 40) == (0, 0, 31)
    assert len(data) == 1024
    assert data[:16].hex() == WHO.host_id.replace("-", "")
    assert data[16:18] == b"\xff\xff"
    assert data[256:512].rstrip(b"\0").decode() == WHO.nqn
    assert data[512:768].rstrip(b"\0").decode() == WHO.host_nqn


async def test_data_is_aligned_as_the_subsystem_asks_for() -> None:
    async with serving(Subsystem(lets_in(), alignment=15)) as server:
        await knock(server, WHO)


async def test_an_alignment_that_no_pdu_can_have_is_refused() -> None:
    async with serving(Subsystem(lets_in(), alignment=32)) as server:
        with pytest.raises(ProtocolError, match="aligned"):
            await knock(server, WHO)


async def test_a_log_that_changes_meanwhile_is_not_half_old() -> None:
    generations = count()

    def answer(command: bytes, data: bytes) -> tuple[int, int, bytes]:
        status, result, whole = discovery(log())(command, data)
        return status, result, pack("<Q", next(generations)) + whole[8:] if whole else b""

    async with serving(Subsystem(answer)) as server:
        with pytest.raises(BusyError, match="ask again"):
            await discover(server, WHO)


@pytest.mark.parametrize("result", [1 | 1 << 17, 1 | 1 << 18])
async def test_it_is_said_whether_a_key_is_wanted(result: int) -> None:
    async with serving(Subsystem(lets_in(result))) as server:
        assert await knock(server, WHO)


@pytest.mark.parametrize(
    ("status", "result", "error"),
    [
        (0x182, 1 << 16 | 256, NotOfferedError),
        (0x182, 1 << 16 | 512, AccessDeniedError),
        (0x184, 0, AccessDeniedError),
        (0x180, 0, TroubleError),
    ],
)
async def test_a_wrong_name_and_a_wrong_host_are_told_apart(
    status: int, result: int, error: type[AttemptError]
) -> None:
    async with serving(Subsystem(lambda command, data: (status, result, b""))) as server:
        with pytest.raises(error, match=r"127\.0\.0\.1"):
            await knock(server, WHO)


def discovery(whole: bytes) -> Answer:
    def answer(command: bytes, data: bytes) -> tuple[int, int, bytes]:
        if command[0] == 0x02:
            (words,) = unpack_from("<H", command, 42)
            (offset,) = unpack_from("<Q", command, 48)
            return 0, 0, whole[offset : offset + 4 * (words + 1)]
        return 0, 1, b""

    return answer


async def test_the_discovery_log_is_read_in_pieces() -> None:
    entries = [entry(2, 3, f"{WHO.nqn}{number}", "10.0.0.1", "4420") for number in range(9)]
    others = [
        entry(1, 3, "nqn.2014-08.org.nvmexpress.discovery", "10.0.0.2", "8009"),
        entry(3, 3, "nqn.2014-08.org.nvmexpress.discovery", "10.0.0.1", "8009"),
        entry(2, 254, WHO.nqn, "", ""),
        entry(2, 2, WHO.nqn, "nn-0x1:pn-0x2", "none"),
    ]
    subsystem = Subsystem(discovery(log(*entries, *others)))
    async with serving(subsystem) as server:
        found = await discover(server, WHO)
    expected = [
        Entry("subsystem", "tcp", f"{WHO.nqn}{number}", "10.0.0.1", "4420") for number in range(9)
    ]
    referral = "nqn.2014-08.org.nvmexpress.discovery"
    expected.append(Entry("referral", "tcp", referral, "10.0.0.2", "8009"))
    expected.append(Entry("subsystem", "fc", WHO.nqn, "nn-0x1:pn-0x2", "none"))
    assert found == expected
    assert [command[0] for command, _ in subsystem.commands] == [0x7F] * 3 + [0x02] * 6


async def test_a_log_without_end_is_refused() -> None:
    async with serving(Subsystem(discovery(pack("<QQ4080x", 1, 2**40)))) as server:
        with pytest.raises(TroubleError, match="too long"):
            await discover(server, WHO)


async def test_a_log_that_is_cut_off_is_refused() -> None:
    async with serving(Subsystem(discovery(b"x" * 100))) as server:
        with pytest.raises(ProtocolError, match="cut off"):
            await discover(server, WHO)


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH_9.2p1\r\n" * 9, b"", bytes(200), b"\x01\0\xff\0\x08\0\0\0" * 20]
)
async def test_what_is_no_nvme_is_said_to_be_none(said: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(AttemptError):
            await knock(address, WHO)


async def test_silence_and_refusal_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(nvme_tcp, "DEADLINE", 0.05)
    async with await asyncio.start_server(wait, "127.0.0.1", 0) as server:
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(TimedOutError):
            await knock(address, WHO)
    with pytest.raises(ServerRefusedError):
        await knock(address, WHO)
