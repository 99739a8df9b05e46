# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest's disk: a small Debian with what the tests need, without the project."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from tests.vm.cache import cached, contents
from tests.vm.host import GuestError, run, say

PYTHON: Final = {"bookworm": "3.11", "trixie": "3.13"}
"""The suites, and the Python of each."""

# The kernel for clouds is a tenth of the usual one and starts sooner. It has no 9p, so the host and
# the guest exchange tar files on disks.
PACKAGES: Final = (
    *("linux-image-cloud-amd64", "initramfs-tools", "lz4"),
    *("systemd-sysv", "udev", "dbus", "polkitd", "libglib2.0-bin", "procps"),
    *("python3", "python3-dbus-next", "python3-pyudev"),
    *("e2fsprogs", "iproute2", "kmod", "nftables"),
    *("nfs-common", "nfs-kernel-server"),
    *("open-iscsi", "tgt"),
    *("nvme-cli",),
)

ALSO: Final = {"trixie": ("ktls-utils",)}
"""The packages of one suite: only its kernel has TLS for NVMe."""

# The servers belong to "another machine" (guest/storage.py, guest/targets.py), and the consoles to
# us. The others have nothing to do here but to take time.
MASKED: Final = (
    *("nfs-server.service", "rpc-statd-notify.service", "nfs-blkmap.service", "tgt.service"),
    *("nvmf-autoconnect.service", "nvmefc-boot-connections.service", "tlshd.service"),
    *("serial-getty@ttyS0.service", "getty@tty1.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer"),
)

ENABLED: Final = ("guest-tests.service", "guest-console.service", "guest-journal.service")

ROOT: Final = Path(__file__).parent / "root"
"""Files that are laid over the guest's own."""

SIZE: Final = "2G"
"""Of the disk; it takes what is written."""

DOWNLOAD: Final = 60.0
BUILD: Final = 900.0
PACK: Final = 120.0
"""Seconds, several times what each took on two cores and a slow line: 1, 80 and 7."""


class Image(NamedTuple):
    """What qemu boots; none of it is ever written."""

    disk: Path
    kernel: Path
    initrd: Path


def image(suite: str) -> Image:
    """Give the image of a Debian suite, built now if it is not in the cache.

    Raises:
        GuestError: it cannot be built.
    """
    inputs = [suite.encode(), _release(suite), *contents(ROOT), *contents(Path(__file__))]
    place = cached(f"guest-{suite}", inputs, lambda made: _build(suite, made))
    return Image(place / "disk.img", place / "vmlinuz", place / "initrd.img")


def _release(suite: str) -> bytes:
    """Read what the archive has now: its index holds the hashes of all packages."""
    with tempfile.NamedTemporaryFile() as file:
        url = f"{_mirror()}dists/{suite}/InRelease"
        run("/usr/lib/apt/apt-helper", "download-file", url, file.name, deadline=DOWNLOAD)
        return Path(file.name).read_bytes()


def _mirror() -> str:
    """Give the archive that this host's own packages come from; it has the other suites too."""
    argv = ("apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian")
    found = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=DOWNLOAD, check=True)
    if not found.stdout:
        raise GuestError("apt knows no archive of Debian; run 'apt-get update' first")
    return found.stdout.split()[0]


def _build(suite: str, made: Path) -> None:
    if os.geteuid():
        raise GuestError("only root can build the guest; once it is built, everybody can run it")
    say(f"building {suite}, which takes a few minutes")
    plain = "--mode=u=rwX,go=rX --owner=0 --group=0"  # whatever the checkout's are
    overlay = f'tar -c {plain} -C {shlex.quote(str(ROOT))} . | tar -x -C "$1"'
    hooks = (
        f"--setup-hook={overlay}",  # before the kernel makes its initial file system
        f"--customize-hook={overlay}",  # mmdebstrap has put names of the host in place
        f'--customize-hook=chroot "$1" systemctl --quiet mask {" ".join(MASKED)}',
        f'--customize-hook=chroot "$1" systemctl --quiet enable {" ".join(ENABLED)}',
    )
    # A tar file, not a directory: what mmdebstrap has mounted in there is never deleted by us.
    with tempfile.TemporaryDirectory(dir=made) as scratch:
        tar, root = Path(scratch) / "root.tar", Path(scratch) / "root"
        variant = ("--variant=minbase", f"--include={','.join((*PACKAGES, *ALSO.get(suite, ())))}")
        run("mmdebstrap", "--quiet", *variant, *hooks, suite, tar, _mirror(), deadline=BUILD)
        root.mkdir()
        run("tar", "--extract", "--numeric-owner", "-f", tar, "-C", root, deadline=PACK)
        for name in ("vmlinuz", "initrd.img"):
            (file,) = (root / "boot").glob(f"{name}-*")
            file.rename(made / name)
        run("mke2fs", "-q", "-t", "ext4", "-d", root, made / "disk.img", SIZE, deadline=PACK)
    for file in made.iterdir():
        file.chmod(0o444)
