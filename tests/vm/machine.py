# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the guest under qemu, shows what it reports, and ends it when it hangs.

The guest has three disks: its own, whose changes are forgotten; the parcel; one for the results. It
has three serial lines: the console, the report (what pytest prints), and the journal as it is
written, so that all of them are known up to the moment at which a guest hangs.
"""

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from tests.vm.host import ENVIRONMENT, GuestError, run
from tests.vm.image import Image

SILENCE: Final = 300.0
"""Seconds without a word from the guest after which it hangs: it boots in 15 to 60, and pytest ends
a test that takes longer than 180 (guest/run)."""

TOTAL: Final = 2400.0
"""Seconds for all of its boots together."""

DUMP: Final = 10.0
"""Seconds in which a kernel prints the stacks of what hangs, if it still can."""

SHOWN: Final = 60
"""Lines of the console that are shown after a failure."""

RESULTS: Final = 256 << 20
"""Bytes of the disk for the results, at most."""

# oops=panic and panic=1: a kernel that broke reboots at once, which guest/run reports.
KERNEL: Final = (
    "root=/dev/vda rw console=ttyS0 mitigations=off nowatchdog oops=panic panic=1 TERM=dumb "
)

# Never KVM: where it is nested it may not get through the boot. Nehalem has what Debian asks for;
# newer models boot slower, since the C library then uses instructions that are slow to emulate.
# Without cmpxchg16b, after which qemu 7.2 was seen to have bits of an address in the flags, so that
# Linux 6.12 trapped or panicked.
MACHINE: Final[tuple[str, ...]] = (
    *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "Nehalem,-cx16"),
    *("-smp", "2", "-m", "2048"),
    *("-no-user-config", "-nodefaults", "-display", "none", "-nic", "none"),
)


def boot(image: Image, parcel: Path, results: Path) -> None:
    """Run the guest until it powers off; its files are in `results` then.

    Raises:
        GuestError: it hung, or ended in any other way.
    """
    disk, monitor = results / "results.tar", results / "monitor"
    disk.touch()
    os.truncate(disk, RESULTS)
    lines = ["-serial", f"file:{results / 'console'}", "-serial", "file:/dev/stdout"]
    lines += ["-serial", f"file:{results / 'journal'}", "-monitor", f"unix:{monitor},server,nowait"]
    argv = [*MACHINE, *lines, *_disks(image, parcel, disk), *_kernel(image, "sysrq_always_enabled")]
    try:
        with (results / "report").open("wb") as report:
            _follow(argv, report, monitor)
        run("tar", "--extract", "--no-same-owner", "-f", disk, "-C", results, deadline=SILENCE)
    except GuestError as error:
        raise GuestError(f"{error}\n{tail(results / 'console')}\nsee {results}") from None
    finally:
        disk.unlink()
        monitor.unlink(missing_ok=True)


def console(image: Image, parcel: Path, results: Path) -> None:
    """Give a shell in the guest, on this terminal, until it ends; nothing is brought back."""
    disk = results / "results.tar"
    disk.touch()
    lines = ("-serial", "mon:stdio", "-serial", "null", "-serial", f"file:{results / 'journal'}")
    argv = [*MACHINE, *lines, *_disks(image, parcel, disk), *_kernel(image, "quiet guest.console")]
    subprocess.run(argv, check=False, env=ENVIRONMENT)


def _disks(image: Image, parcel: Path, results: Path) -> list[str]:
    argv = []
    for name, options in (
        ("root", f"file={image.disk},snapshot=on"),
        ("parcel", f"file={parcel},readonly=on"),
        ("results", f"file={results}"),
    ):
        argv += ["-drive", f"if=none,id={name},format=raw,cache=unsafe,{options}"]
        argv += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return argv


def _kernel(image: Image, more: str) -> list[str]:
    return ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", KERNEL + more]


def _follow(argv: list[str], report: IO[bytes], monitor: Path) -> None:
    end = time.monotonic() + TOTAL
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        try:
            while data := _read(process.stdout, end):
                text = data.replace(b"\r", b"")
                report.write(text)
                sys.stdout.buffer.write(text)
                sys.stdout.flush()
            if process.wait(SILENCE):
                raise GuestError(f"qemu ended with status {process.returncode}")
        except TimeoutError as error:
            _dump(monitor)
            raise GuestError(f"the guest hung: {error}") from None
        finally:
            process.kill()


def _read(stdout: IO[bytes], end: float) -> bytes:
    """Give what was reported next, nothing at its end.

    Raises:
        TimeoutError: nothing was.
    """
    left = end - time.monotonic()
    readable, _, _ = select.select([stdout], [], [], max(0.0, min(SILENCE, left)))
    if not readable:
        why = f"no word for {SILENCE:g} s" if left > SILENCE else f"{TOTAL:g} s are over"
        raise TimeoutError(why)
    return os.read(stdout.fileno(), 65536)


def _dump(monitor: Path) -> None:
    """Have the kernel print what is blocked, on its console. Source: sysrq.rst, "w" and "9"."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as qemu:
        qemu.connect(str(monitor))
        qemu.sendall(b"sendkey alt-sysrq-9\nsendkey alt-sysrq-w\n")
        time.sleep(DUMP)  # it does not say when it has printed all


def tail(console: Path, *, boots: int = 1) -> str:
    """Give the end of what the console showed in the last boot, or in the one before it (2)."""
    text = console.read_text(errors="replace").replace("\r", "") if console.exists() else ""
    parts = text.split("] Linux version ")[-boots:]
    lines = [line for line in parts[0].splitlines() if line]
    return "\n".join(["the end of its console:", *lines[-SHOWN:]])
