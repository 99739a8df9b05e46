# SPDX-License-Identifier: LGPL-2.1-or-later
import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pyroute2.netlink import NETLINK_KOBJECT_UEVENT

from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look
from storaged_conn.sources.uevents import BATCH, CONTROL, NVME, SESSIONS, UDEVD, UeventSource
from storaged_conn.system.devices import device_node
from tests import udevd
from tests.fuzz import netlink
from tests.live import DEADLINE
from tests.mounts import make_image, needs_root
from tests.sources.looks import Looks

FLOOD = 300
"""Messages, each over 1 KiB."""

PROGRAM = """
import asyncio
from storaged_conn.sources.uevents import UeventSource

async def main():
    heard = asyncio.Event()
    source = UeventSource()
    source.start(lambda topic, *, hint: heard.set(), heard.set)
    print("started", flush=True)
    await heard.wait()
    source.close()

asyncio.run(main())
"""

HOOK = """
import sys
STARTS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}
sys.addaudithook(lambda event, _: print(event) if event in STARTS else None)
"""


class CountingSource(UeventSource):
    """Counts how often the loop calls it."""

    calls = 0

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        self.called = asyncio.Event()
        super().start(look, resync)

    def _read(self) -> None:
        self.calls += 1
        super()._read()
        self.called.set()


@dataclass
class FakeDevice:
    """What udevd says of a device."""

    action: str = "change"
    subsystem: str = "block"
    sys_name: str = "sda"
    device_path: str = "/devices/virtual/block/sda"
    device_node: str | None = "/dev/nonesuch"
    device_links: Iterable[str] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, bytes] = field(default_factory=dict)


SYNTHETIC = {"SYNTH_UUID": "0"}


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
async def source(looks: Looks, told: list[str]) -> AsyncIterator[CountingSource]:
    source = CountingSource(
        {"iscsi_transport": told.append, SESSIONS: told.append, NVME: told.append}
    )
    source.start(looks, looks.resync)
    yield source
    source.close()
    source.close()


@pytest.fixture(scope="module")
def running() -> Iterator[udevd.Udevd]:
    with udevd.running() as running:
        yield running


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


def hints(source: UeventSource, looks: Looks, device: FakeDevice) -> dict[str, bool]:
    """Give what a message says to look at, by name, and whether each is a hint."""
    looks.heard.clear()
    source._take(device)
    return {topic.name: hint for topic, hint in looks.heard if topic.kind == "source"}


def opened(source: UeventSource) -> socket.socket:
    assert source._socket is not None
    return source._socket


def change(node: Path, times: int) -> None:
    """Have the kernel say that a device changed."""
    for _ in range(times):
        Path("/sys/block", node.name, "uevent").write_text("change")


# what a message means


async def test_a_block_device_is_told_by_its_node_and_all_its_links(
    source: UeventSource, looks: Looks
) -> None:
    device = FakeDevice(action="add", device_links=("/dev/disk/by-uuid/X", "/dev/disk/by-id/Y"))
    names = ("/dev/nonesuch", "/dev/disk/by-uuid/X", "/dev/disk/by-id/Y")
    assert hints(source, looks, device) == dict.fromkeys(names, True)


async def test_the_image_behind_a_loop_device_is_no_hint_since_every_attempt_makes_one(
    source: UeventSource, looks: Looks
) -> None:
    device = FakeDevice(attributes={"loop/backing_file": b"/srv/\xff.img"})
    assert hints(source, looks, device) == {"/dev/nonesuch": True, "/srv/\udcff.img": False}


async def test_a_device_whose_name_is_no_text_is_a_resync(
    source: UeventSource, looks: Looks
) -> None:
    vars(source)["_monitor"] = netlink.Monitor(netlink.DEVICES[2])
    source._read()
    await looks.until(lambda: looks.resyncs)
    assert not looks.heard


async def test_a_device_without_a_node_says_nothing(source: UeventSource, looks: Looks) -> None:
    assert hints(source, looks, FakeDevice(device_node=None)) == {}


async def test_what_the_kernel_says_is_a_hint_every_time(
    source: UeventSource, looks: Looks
) -> None:
    for _ in range(2):
        assert hints(source, looks, FakeDevice()) == {"/dev/nonesuch": True}


@pytest.mark.parametrize(
    "other",
    [
        FakeDevice(properties=SYNTHETIC, device_links=("/dev/disk/by-uuid/X",)),
        FakeDevice(properties=SYNTHETIC | {"ID_FS_TYPE": "xfs"}),
        FakeDevice(properties=SYNTHETIC, sys_name="sdb"),
    ],
)
async def test_what_somebody_has_repeated_is_a_hint_only_where_it_says_something_new(
    source: UeventSource, looks: Looks, other: FakeDevice
) -> None:
    same = FakeDevice(properties=SYNTHETIC)
    assert all(hints(source, looks, same).values())
    for _ in range(2):
        assert not any(hints(source, looks, same).values())
    assert all(hints(source, looks, other).values())
    assert not any(hints(source, looks, other).values())


async def test_after_a_removal_everything_is_new(source: UeventSource, looks: Looks) -> None:
    same = FakeDevice(properties=SYNTHETIC)
    assert all(hints(source, looks, same).values())
    assert not any(hints(source, looks, FakeDevice(action="remove")).values())
    assert all(hints(source, looks, same).values())


async def test_a_link_that_outlives_its_device_is_a_hint_since_it_leads_to_another(
    source: UeventSource, looks: Looks, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to("nonesuch")
    device = FakeDevice(action="remove", device_links=(str(link), "/dev/disk/by-uuid/X"))
    found = hints(source, looks, device)
    assert found == {"/dev/nonesuch": False, str(link): True, "/dev/disk/by-uuid/X": False}


@pytest.mark.parametrize("action", ["add", "change", "remove"])
async def test_what_is_of_a_further_subsystem_is_told_by_its_name(
    source: UeventSource, looks: Looks, told: list[str], action: str
) -> None:
    source._take(FakeDevice(action=action, subsystem="iscsi_transport", sys_name="tcp"))
    source._take(FakeDevice(action=action, subsystem="iscsi_session", sys_name="session1"))
    assert told == ["tcp", "session1"]
    assert looks.heard == []


async def test_the_session_of_a_disk_is_told_too(
    source: UeventSource, looks: Looks, told: list[str]
) -> None:
    path = "/devices/platform/host3/session12/target3:0:0/3:0:0:1/block/sda"
    source._take(FakeDevice(device_path=path))
    assert told == ["session12"]
    assert looks.heard


@pytest.mark.parametrize("owner", ["nvme-subsys3", "nvme3"])
async def test_what_a_namespace_belongs_to_is_told_too(
    source: UeventSource, looks: Looks, told: list[str], owner: str
) -> None:
    path = f"/devices/virtual/nvme-fabrics/ctl/{owner}/nvme3n1"
    source._take(FakeDevice(device_path=path))
    assert told == [owner]
    assert looks.heard


# the start


async def test_it_says_once_where_udevd_does_not_run(
    looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = UeventSource()
    source.start(looks, looks.resync)
    source.close()
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("uevents")]
    assert len(lines) == (0 if CONTROL.exists() else 1)


def test_it_starts_no_process() -> None:
    source = "import asyncio\nfrom storaged_conn.sources.uevents import _monitor\n_monitor('block')"
    argv = [sys.executable, "-c", HOOK + source]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert done.stdout == ""


async def test_it_hears_the_group_of_udevd_and_no_other(source: UeventSource) -> None:
    _, groups = opened(source).getsockname()
    assert groups == 1 << (UDEVD - 1)


@needs_root
@pytest.mark.root
async def test_it_hears_udevd_that_starts_later_where_libudev_stays_deaf(image: Path) -> None:
    argv = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$0" "$@"']
    argv += [sys.executable, "-c", PROGRAM]
    with udevd.running() as running:
        process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE)
        try:
            async with asyncio.timeout(DEADLINE):
                assert process.stdout is not None
                assert await process.stdout.readline() == b"started\n"
                with udevd.attached(image):
                    running.settle()
                    assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


# a real udevd


@needs_root
@pytest.mark.root
async def test_a_loop_device_is_told_by_the_link_to_its_file_system_which_is_there_then(
    source: UeventSource, looks: Looks, running: udevd.Udevd, image: Path
) -> None:
    link = Path("/dev/disk/by-uuid", udevd.uuid_of(image))
    with udevd.attached(image) as node:
        await looks.until(lambda: (Topic("source", str(link)), True) in looks.heard)
        assert device_node(str(link)) == str(node)


@needs_root
@pytest.mark.root
async def test_to_close_a_device_after_writing_is_a_hint_only_if_that_made_something_new(
    source: UeventSource, looks: Looks, running: udevd.Udevd, image: Path, tmp_path: Path
) -> None:
    other = make_image(tmp_path / "other.img")
    link = Topic("source", f"/dev/disk/by-uuid/{udevd.uuid_of(other)}")
    with udevd.attached(image) as node:
        await looks.of("source", node)
        running.settle()  # udevd misses who closes while it handles an event
        os.close(os.open(node, os.O_WRONLY))
        assert not await looks.of("source", node)
        running.settle()
        shutil.copyfile(other, node)
        await looks.until(lambda: (link, True) in looks.heard)


@needs_root
@pytest.mark.root
async def test_only_what_was_sent_to_the_group_is_believed(
    source: CountingSource, looks: Looks, running: udevd.Udevd, image: Path
) -> None:
    with (
        udevd.attached(image, "--read-only") as node,  # to close it is no event then
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT) as spy,
    ):
        await looks.of("source", node)
        spy.settimeout(DEADLINE)
        spy.bind((0, 1 << (UDEVD - 1)))
        change(node, 1)
        message = spy.recv(65536)
        assert f"DEVNAME={node}".encode() in message
        await looks.of("source", node)
        port, _ = opened(source).getsockname()
        source.called.clear()
        spy.sendto(message, (port, 0))
        async with asyncio.timeout(DEADLINE):
            await source.called.wait()
        assert looks.heard == []
        spy.sendto(message, (0, 1 << (UDEVD - 1)))  # it was not for the message's contents
        await looks.of("source", node)


@needs_root
@pytest.mark.root
async def test_a_burst_is_taken_whole_and_in_small_batches(
    source: CountingSource, looks: Looks, running: udevd.Udevd, image: Path
) -> None:
    with udevd.attached(image) as node:
        await looks.of("source", node)
        calls = source.calls
        change(node, FLOOD)
        running.settle()  # which holds the loop up all the while
        about_node = (Topic("source", str(node)), False)
        await looks.until(lambda: looks.heard.count(about_node) >= FLOOD)
        assert source.calls - calls >= FLOOD / BATCH
        assert looks.resyncs == 0


@needs_root
@pytest.mark.root
async def test_an_overflow_is_one_resync_and_the_messages_after_it_are_heard(
    source: CountingSource, looks: Looks, running: udevd.Udevd, image: Path
) -> None:
    with udevd.attached(image) as node:
        await looks.of("source", node)
        buffer = opened(source).getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        opened(source).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        calls = source.calls
        change(node, FLOOD)
        running.settle()  # which holds the loop up all the while
        await looks.until(lambda: looks.resyncs)
        heard = [topic for topic, _ in looks.heard if topic.name == str(node)]
        assert len(heard) < FLOOD
        assert source.calls - calls <= len(heard) + 2
        assert looks.resyncs == 1
        opened(source).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        calls = source.calls
        looks.heard.clear()
        change(node, 1)
        await looks.of("source", node)
        assert source.calls - calls == 1
        assert looks.resyncs == 1
