# SPDX-License-Identifier: LGPL-2.1-or-later
"""How soon a file system that was unmounted behind the service's back is mounted again.

In turns with mount(8) alone, on a copy of the same image and with the options that the service
gives, since most of the time is mount(8)'s. Needs root.
"""

import asyncio
import os
import select
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Final

from storaged_conn.bus.wire import Field, Message
from storaged_conn.front.objects import PAUSE
from storaged_conn.names import CONNECTION, PROPERTIES, SERVICE
from tests.bench.service import Client, stage
from tests.bench.table import Row, print_table
from tests.live import DEADLINE

ROUNDS: Final = 50
IMAGE_BYTES: Final = 16 * 2**20
MOUNTINFO: Final = Path("/proc/self/mountinfo")


async def main() -> None:
    """Measure and print."""
    if os.geteuid() != 0:
        print("\numount: skipped, only root can mount")
        return
    async with stage() as on:
        image, copy, place = _prepare(on.directory)
        async with _managed(on.ours, image) as path:
            rows = await _measure(on.ours, path, copy, place)
    print_table(f"Unmounted by umount(8) behind its back, {ROUNDS} times", rows)


def _prepare(directory: Path) -> tuple[Path, Path, Path]:
    """Make an image, a copy of it, and a place to mount that."""
    image, copy, place = directory / "image", directory / "copy", directory / "alone"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=DEADLINE)
    shutil.copy(image, copy)
    place.mkdir()
    return image, copy, place


@asynccontextmanager
async def _managed(ours: Client, image: Path) -> AsyncIterator[str]:
    """Have an image mounted; leaves none of it behind."""
    path = await ours.manage(f"posix+ext4:{image}", "image")
    where = (SERVICE, path, CONNECTION, "WaitFor")
    timeout_usec = int(DEADLINE * 1e6)
    await ours.bus.call(where, "sta{sv}", ("connected", timeout_usec, {}), timeout=DEADLINE)
    mountpoint = await _mountpoint(ours, path)
    try:
        yield path
    finally:
        await ours.unmanage("image")
        await asyncio.to_thread(_wait, mountpoint, mounted=False)


async def _measure(ours: Client, path: str, copy: Path, place: Path) -> list[Row]:
    mountpoint = await _mountpoint(ours, path)
    news = await _News.of(ours, path)
    alone: list[float] = []
    itself: list[float] = []
    back: list[float] = []
    told: list[float] = []
    for _ in range(ROUNDS):
        alone.append(await asyncio.to_thread(_mount_alone, copy, place))
        await asyncio.sleep(2 * PAUSE)  # the loss must not be one signal with the return before it
        news.connected.clear()
        began, unmounted, mounted = await asyncio.to_thread(_unmount, mountpoint)
        async with asyncio.timeout(DEADLINE):
            await news.connected.wait()
        itself.append((unmounted - began) * 1000)
        back.append((mounted - unmounted) * 1000)
        told.append((news.at - unmounted) * 1000)
    return [
        Row("mount(8) alone", alone, "ms"),
        Row("umount(8) itself", itself, "ms"),
        Row("its end until mounted again", back, "ms", "< 100 ms"),
        Row("its end until a client is told", told, "ms", "< 100 ms"),
    ]


class _News:
    """Listens for the signal that the connection is connected.

    Attributes:
        connected: is set by it.
        at: when it came.
    """

    def __init__(self, path: str) -> None:
        self.connected = asyncio.Event()
        self.at = 0.0
        self._path = path

    @classmethod
    async def of(cls, ours: Client, path: str) -> "_News":
        news = cls(path)
        ours.bus.listen(news.hear)
        await ours.bus.ask("AddMatch", "s", f"type='signal',interface='{PROPERTIES}',path='{path}'")
        return news

    def hear(self, message: Message) -> None:
        if message.text(Field.PATH) != self._path:
            return
        _, changes, _ = message.arguments()
        if "Connected" in changes and changes["Connected"].value:
            self.at = monotonic()
            self.connected.set()


async def _mountpoint(ours: Client, path: str) -> str:
    where = (SERVICE, path, PROPERTIES, "Get")
    (got,) = await ours.bus.call(where, "ss", (CONNECTION, "MountPoint"), timeout=DEADLINE)
    return str(got.value)


def _mount_alone(image: Path, place: Path) -> float:
    """Give the milliseconds that mount(8) takes."""
    argv = ["mount", "-t", "ext4", "-o", "loop,nosuid,nodev", str(image), str(place)]
    began = monotonic()
    subprocess.run(argv, check=True, timeout=DEADLINE)
    took = monotonic() - began
    subprocess.run(["umount", place], check=True, timeout=DEADLINE)
    return took * 1000


def _unmount(mountpoint: str) -> tuple[float, float, float]:
    """Give the times when umount(8) began, when it had ended, and when it was mounted again."""
    began = monotonic()
    subprocess.run(["umount", mountpoint], check=True, timeout=DEADLINE)
    unmounted = monotonic()
    return began, unmounted, _wait(mountpoint, mounted=True)


def _wait(mountpoint: str, *, mounted: bool) -> float:
    """Wait until something is mounted there, or nothing is; gives the time.

    Source: proc(5), /proc/PID/mounts: a change marks the open file with POLLPRI.
    """
    deadline = monotonic() + DEADLINE
    with MOUNTINFO.open() as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI)
        while _is_mounted(mountpoint) is not mounted:
            if not changes.poll((deadline - monotonic()) * 1000):
                raise TimeoutError(f"{mountpoint}: mounted is still not {mounted}")
    return monotonic()


def _is_mounted(mountpoint: str) -> bool:
    return any(line.split()[4] == mountpoint for line in MOUNTINFO.read_text().splitlines())
