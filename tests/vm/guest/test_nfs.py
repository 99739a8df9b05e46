# SPDX-License-Identifier: LGPL-2.1-or-later
"""NFS as its users meet it: the service on the system bus, real servers, and what happens to them.

Times are those of the service's own clock (StateSince), measured from before the fault was played.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest

from tests.caller import Caller
from tests.live import DEADLINE
from tests.mounts import table
from tests.shell import Shell
from tests.shell import show as say
from tests.vm.guest.steps import connected, leave, since
from tests.vm.guest.storage import Server
from tests.vm.guest.units import UNIT, owners, restarted, show, tool

SLOW: Final = 2.0
"""Seconds more than what is promised: the guest is emulated, some 20 times slower than its host."""

SILENT: Final = 4.5 + SLOW
BACK: Final = 1.0 + SLOW
SERVED: Final = 2.0 + SLOW
LISTED: Final = 1.0
"""Seconds; the last in place of 0.1, for the same reason."""

NO_RPCBIND: Final = """
table inet rpcbind {
    chain input {
        type filter hook input priority 0;
        tcp dport 111 reject with tcp reset
    }
}
"""

POINT: Final = Path("/mnt/nfs-test")
FIRST: Final = "nfs://10.9.0.2/export"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        (server.export("/export") / "file").write_text("first")
        (server.export("/srv/with é") / "file").write_text("second")
        server.export("/deny", clients="10.9.0.77")
        server.start()
        yield server


@pytest.fixture
async def client(server: Server, caller: Caller) -> AsyncIterator[Caller]:
    """Give a client that leaves nothing mounted, while the server is still there."""
    yield caller
    await leave(caller)


@contextmanager
def silent(*servers: Server) -> Iterator[float]:
    """Cut the servers off behind their switches; gives when that was."""
    begun = time.time()
    for server in servers:
        server.link(up=False)
    try:
        yield begun
    finally:
        for server in servers:
            server.link(up=True)


@contextmanager
def stopped(server: Server) -> Iterator[float]:
    begun = time.time()
    server.stop()
    try:
        yield begun
    finally:
        server.start()


@contextmanager
def foreign(source: str, place: Path) -> Iterator[Path]:
    """Mount as root does without us."""
    place.mkdir()
    tool("mount", "-t", "nfs", "-o", "vers=4.2,retry=0", source, place)
    try:
        yield place
    finally:
        tool("umount", "--lazy", place)
        place.rmdir()


def mounted() -> dict[str, str]:
    """Give where what is mounted from servers is, and where it is from."""
    mounts = (table().mounts or {}).values()
    return {one.target: one.source for one in mounts if one.fstype.startswith("nfs")}


def read(found: dict[str, Any], name: str = "file") -> str:
    return (Path(found["MountPoint"]) / name).read_text()


# connecting


async def test_busctl_is_all_it_takes(client: Caller, shell: Shell) -> None:
    path = await shell.manage("nfs://10.9.0.2/export", "a")
    await shell.wait(path, "connected")
    assert read(await client.properties("a")) == "first"


@pytest.mark.parametrize("version", ["3", "4.0", "4.1", "4.2"])
async def test_every_version_is_mounted_and_published(client: Caller, version: str) -> None:
    options: dict[str, object] = {"version": version, "softerr": True, "timeo": 100, "retrans": 1}
    await client.manage(FIRST, "a", mountpoint=str(POINT), **options)
    found = await connected(client, "a")
    assert read(found) == "first"
    expected = {
        "hostname": "10.9.0.2",
        "port": 2049,
        "remotePath": "/export",
        "version": version,
        "protocol": "tcp",
        "recovery": "softerr",
        "timeo": 100,
        "retrans": 1,
        "errorAfterMs": 20000,
    }
    assert {name: found["ConnectionInfo"][name] for name in expected} == expected
    assert {"nosuid", "nodev"} <= set(found["ConnectionInfo"]["options"])
    await leave(client)
    assert not mounted()
    assert not POINT.exists()


async def test_by_default_the_highest_version_and_no_error_ever(client: Caller) -> None:
    await client.manage(FIRST, "a")
    info = (await connected(client, "a"))["ConnectionInfo"]
    assert (info["version"], info["recovery"], info["errorAfterMs"]) == ("4.2", "hard", 0)


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("nfs://10.9.0.2:/export", "first"),
        ("nfs://10.9.0.2:export", "first"),
        ("nfs://10.9.0.2:2049/export/", "first"),
        ("nfs://[fd09::2]/export", "first"),
        ("nfs://10.9.0.2/srv/with é", "second"),
        ("nfs://[fd09::2]:/srv/with%20%C3%A9", "second"),
    ],
)
async def test_every_spelling_is_understood(client: Caller, uri: str, content: str) -> None:
    await client.manage(uri, "a")
    assert read(await connected(client, "a")) == content


async def test_two_ids_share_one_mount(client: Caller) -> None:
    await client.manage("nfs://10.9.0.2/export", "a")
    await client.manage("nfs://10.9.0.2:export", "b")
    first, second = await connected(client, "a"), await connected(client, "b")
    assert first["MountPoint"] == second["MountPoint"]
    assert len(mounted()) == 1
    await client.unmanage("a")
    assert read(await connected(client, "b")) == "first"


@pytest.mark.parametrize(
    ("path", "version", "error"),
    [
        ("/nothere", "auto", "NotOffered"),
        ("/nothere", "3", "NotOffered"),
        ("/nothere", "4.2", "NotOffered"),
        ("/deny", "auto", "AccessDenied"),
        ("/deny", "3", "AccessDenied"),
        ("/deny", "4.2", "AccessDenied"),
    ],
)
async def test_what_the_server_does_not_give_us_fails(
    client: Caller, path: str, version: str, error: str
) -> None:
    await client.manage(f"nfs://10.9.0.2{path}", "a", version=version)
    found = await client.until("a", State="failed")
    assert found["LastErrorName"].endswith(f".{error}"), found["LastErrorMessage"]
    assert not mounted()


async def test_a_version_that_the_server_lacks_fails(client: Caller, server: Server) -> None:
    with stopped(server):
        server.run("rpc.nfsd", "--no-nfs-version", "3", "4")
        await client.manage(FIRST, "a", version="3")
        found = await client.until("a", State="failed")
        assert found["LastErrorName"].endswith(".ProtocolNotSupported")
        server.stop()
        await client.until("a", State="waiting", StateReason="server-refused")
        server.run("rpc.nfsd", "--nfs-version", "3", "0")
    await connected(client, "a")


# asking


async def test_exports_are_discovered(client: Caller) -> None:
    (found,) = await client.call("Discover", "sa{sv}", "nfs://10.9.0.2", {})
    expected = {
        "nfs://10.9.0.2/export": ["*"],
        "nfs://10.9.0.2/srv/with%20%C3%A9": ["*"],
        "nfs://10.9.0.2/deny": ["10.9.0.77"],
    }
    assert {one["uri"]: one["clients"] for one in found} == expected
    (found,) = await client.call("Discover", "sa{sv}", "nfs://[fd09::2]", {})
    assert {one["uri"] for one in found} >= {"nfs://[fd09::2]/export"}


async def test_without_mountd_the_root_is_discovered(client: Caller, server: Server) -> None:
    server.run("nft", "-f", "-", text=NO_RPCBIND)
    try:
        (found,) = await client.call("Discover", "sa{sv}", "nfs://10.9.0.2", {})
        assert found == [{"uri": "nfs://10.9.0.2/"}]
    finally:
        server.run("nft", "delete", "table", "inet", "rpcbind")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nfs://10.9.0.2/export", None),
        ("nfs://10.9.0.2/srv/with%20%C3%A9", None),
        ("nfs://nonesuch.invalid/export", "name-resolution"),
        ("nfs://192.0.2.1/export", "network-unreachable"),
        ("nfs://10.9.0.2:2050/export", "server-refused"),
        ("nfs://10.9.0.2:111/export", "protocol"),
        ("nfs://10.9.0.2/nothere", "not-offered"),
        ("nfs://10.9.0.2/deny", "access-denied"),
    ],
)
async def test_it_is_said_which_step_would_fail(
    client: Caller, uri: str, reason: str | None
) -> None:
    (found,) = await client.call("Validate", "sa{sv}", uri, {})
    assert found.get("reason") == reason, found
    assert found["ok"] is (reason is None)
    assert not mounted()


# a server that dies


async def test_a_silent_server_is_noticed_and_its_return_needs_no_new_mount(
    client: Caller, server: Server
) -> None:
    await client.manage(FIRST, "a")
    place = (await connected(client, "a"))["MountPoint"]
    device = os.stat(place).st_dev
    with silent(server) as begun:
        assert await since(client, "a", begun, "unresponsive") < SILENT
        back = time.time()
    assert await since(client, "a", back, "connected") < BACK
    found = await client.properties("a")
    assert (found["MountPoint"], os.stat(place).st_dev) == (place, device)
    assert found["Attempts"] == 1
    assert read(found) == "first"


async def test_it_is_back_at_once_though_somebody_waited_for_it(
    client: Caller, server: Server
) -> None:
    await client.manage(FIRST, "a")
    place = Path((await connected(client, "a"))["MountPoint"])
    begun = time.time()
    server.drop()
    reading = asyncio.create_task(asyncio.to_thread((place / "file").read_text))
    try:
        assert await since(client, "a", begun, "unresponsive") < SILENT
        await asyncio.sleep(20)
    finally:
        server.deliver()
    assert await since(client, "a", time.time(), "connected") < BACK
    assert await reading == "first"


async def test_a_server_that_stops_and_starts_is_noticed_at_once(
    client: Caller, server: Server
) -> None:
    await client.manage(FIRST, "a")
    await connected(client, "a")
    with stopped(server) as begun:
        assert await since(client, "a", begun, "unresponsive") < SERVED
    back = time.time()
    assert await since(client, "a", back, "connected") < BACK
    assert read(await client.properties("a")) == "first"


async def test_our_own_link_goes_and_comes(client: Caller, server: Server) -> None:
    await client.manage(FIRST, "a")
    await connected(client, "a")
    begun = time.time()
    server.own_link(up=False)
    try:
        assert await since(client, "a", begun, "unresponsive") < SERVED
    finally:
        server.own_link(up=True)
    assert await since(client, "a", time.time(), "connected") < BACK


async def test_a_server_that_comes_later_is_connected_then(client: Caller, server: Server) -> None:
    with stopped(server):
        await client.manage(FIRST, "a")
        found = await client.until("a", State="waiting", StateReason="server-refused")
        assert found["LastErrorName"].endswith("ServerRefused")
        begun = time.time()
    assert await since(client, "a", begun, "connected") < SERVED + SLOW


async def test_dead_servers_hold_up_nothing(client: Caller, server: Server) -> None:
    with ExitStack() as stack:
        dead = [stack.enter_context(Server(number)) for number in range(1, 6)]
        for number, one in enumerate(dead, 1):
            one.export("/export")
            one.start()
            await client.manage(f"nfs://{one.address}/export", f"dead {number}")
        for number in range(1, 6):
            await connected(client, f"dead {number}")
        with silent(*dead):
            for number in range(1, 6):
                await client.until(f"dead {number}", State="unresponsive")
            slowest, listed = 0.0, {}
            await client.manage(FIRST, "alive")
            for _ in range(20):
                begun = time.monotonic()
                listed = await client.listed()
                slowest = max(slowest, time.monotonic() - begun)
            say(f"the slowest List took {1000 * slowest:.0f} ms")
            assert len(listed) == 6
            assert slowest < LISTED
            assert read(await connected(client, "alive")) == "first"
            await client.unmanage("dead 1")
            await client.gone(f"nfs://{dead[0].address}/export")
        for number in range(2, 6):
            await connected(client, f"dead {number}")
        await leave(client)


async def test_a_dead_servers_mount_goes_though_it_is_in_use(
    client: Caller, server: Server
) -> None:
    await client.manage(FIRST, "a", mountpoint=str(POINT))
    await connected(client, "a")
    with (POINT / "file").open() as file, silent(server):
        await client.until("a", State="unresponsive")
        begun = time.monotonic()
        await client.unmanage("a")
        await client.gone(FIRST)
        say(f"gone after {time.monotonic() - begun:.2f} s")
        assert time.monotonic() - begun < SERVED + SLOW
        assert not mounted()
        assert not POINT.exists()
    assert file.closed


# what others do, and what happens to us


async def test_what_root_unmounts_is_mounted_again(client: Caller) -> None:
    await client.manage(FIRST, "a", mountpoint=str(POINT))
    await connected(client, "a")
    for number in range(1, 4):
        tool("umount", "--lazy", POINT)
        await client.until("a", State="connected", Reconnects=number)
        assert read(await client.properties("a")) == "first"


async def test_what_is_in_use_stays_until_it_is_free(client: Caller) -> None:
    await client.manage(FIRST, "a", mountpoint=str(POINT))
    await connected(client, "a")
    with (POINT / "file").open() as file:
        await client.unmanage("a")
        await client.unmanaged(FIRST, State="disconnecting", StateReason="busy")
        assert file.read() == "first"
    await client.gone(FIRST)
    assert not mounted()


async def test_what_somebody_else_mounted_is_listed_adopted_and_left_alone(
    client: Caller, tmp_path: Path
) -> None:
    with foreign("10.9.0.2:/export/", tmp_path / "theirs") as place:
        await client.unmanaged(FIRST, MountPoint=str(place))
        await client.manage(FIRST, "a")
        found = await connected(client, "a")
        assert found["MountPoint"] == str(place)
        await client.unmanage("a")
        await client.unmanaged(FIRST, State="connected")
        assert mounted() == {str(place): "10.9.0.2:/export"}


async def test_what_the_kernel_mounts_below_a_mount_is_no_connection_of_its_own(
    client: Caller,
) -> None:
    await client.manage("nfs://10.9.0.2/", "a", mountpoint=str(POINT))
    await connected(client, "a")
    assert (POINT / "export/file").read_text() == "first"
    assert len(mounted()) > 1
    uris = [one["Uri"] for one in await client.objects()]
    assert [uri for uri in uris if uri.startswith("nfs:")] == ["nfs://10.9.0.2/"]
    await leave(client)
    assert not mounted()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_mount_and_its_users_outlive_the_service(
    client: Caller, number: signal.Signals
) -> None:
    await client.manage(FIRST, "a")
    await client.manage(FIRST, "b")
    place = Path((await connected(client, "a"))["MountPoint"])
    stop = asyncio.Event()
    writing = asyncio.create_task(asyncio.to_thread(write_until, place / "written", stop))
    try:
        async with owners() as changes:
            if number == signal.SIGKILL:
                os.kill(int(show("MainPID")), number)
            else:
                await asyncio.to_thread(tool, "systemctl", "restart", UNIT)
            await restarted(changes)
        for cid in ("a", "b"):
            assert (await connected(client, cid))["MountPoint"] == str(place)
    finally:
        stop.set()
    assert await writing > 0
    assert (await client.properties("a"))["Attempts"] == 1


def write_until(file: Path, stop: asyncio.Event) -> int:
    """Write, and have it on the server's disk, until told to stop; gives how often."""
    written = 0
    with file.open("w") as open_file:
        while not stop.is_set():
            open_file.write("x" * 4096)
            open_file.flush()
            os.fsync(open_file.fileno())
            written += 1
    return written


# what is stale


async def test_what_is_stale_is_mounted_anew_when_nobody_uses_it(client: Caller) -> None:
    with Server(1) as other:
        (other.export("/export") / "file").write_text("old")
        other.start()
        uri = f"nfs://{other.address}/export"
        await client.manage(uri, "a")
        place = Path((await connected(client, "a"))["MountPoint"])
        held = os.open(place / "file", os.O_RDONLY)
        try:
            (other.replace("/export") / "file").write_text("new")
            with stopped(other):
                await client.until("a", State="unresponsive")
            await client.until("a", State="waiting", StateReason="busy")
        finally:
            os.close(held)
        await client.until("a", State="connected")
        assert (place / "file").read_text() == "new"
        await leave(client)


async def test_what_is_stale_is_mounted_anew_at_once_where_that_is_wanted(client: Caller) -> None:
    with Server(1) as other:
        (other.export("/export") / "file").write_text("old")
        other.start()
        uri = f"nfs://{other.address}/export"
        await client.manage(uri, "a", stale="always")
        place = Path((await connected(client, "a"))["MountPoint"])
        with (place / "file").open():
            (other.replace("/export") / "file").write_text("new")
            with stopped(other):
                await client.until("a", State="unresponsive")
            await client.until("a", State="connected", Reconnects=1)
            assert (place / "file").read_text() == "new"
        await leave(client)


async def test_what_is_stale_stays_where_that_is_wanted(client: Caller) -> None:
    with Server(1) as other:
        other.export("/export")
        other.start()
        await client.manage(f"nfs://{other.address}/export", "a", stale="never")
        await connected(client, "a")
        other.replace("/export")
        with stopped(other):
            await client.until("a", State="unresponsive")
        async with asyncio.timeout(DEADLINE):
            await client.hears_change("a", State="unresponsive")
        assert (await client.properties("a"))["Attempts"] == 1
        await leave(client)


async def mounted_by_hand(servers: Sequence[Server]) -> float:
    """Mount from all at once as root does without us; gives the seconds until all are there."""
    with ExitStack() as stack:
        async with asyncio.TaskGroup() as tasks:
            begun = time.monotonic()
            for one in servers:
                place = Path(stack.enter_context(TemporaryDirectory()))
                stack.callback(tool, "umount", place)
                command = ("mount", "-t", "nfs", "-o", "retry=0", f"{one.address}:/export", place)
                tasks.create_task(asyncio.to_thread(tool, *command))
        return time.monotonic() - begun


async def test_some_dead_servers_of_many_hold_up_none_of_the_others(client: Caller) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(number)) for number in range(1, 11)]
        for one in servers:
            one.export("/export")
            one.start()
        begun = time.time()
        await client.manage(f"nfs://{servers[0].address}/export", "alone")
        alone = await since(client, "alone", begun, "connected")
        by_hand = await mounted_by_hand(servers[:7])
        say(f"by hand, seven at once: {by_hand:.2f} s")
        with silent(*servers[7:]):
            begun = time.time()
            for number, one in enumerate(servers):
                options: dict[str, object] = {"mountpoint": f"{POINT}/{number}"}
                await client.manage(f"nfs://{one.address}/export", f"many {number}", **options)
            times = [await since(client, f"many {one}", begun, "connected") for one in range(7)]
            assert max(times) < 3 * max(alone, by_hand) + SERVED  # one dead server costs 180 s
        await leave(client)
