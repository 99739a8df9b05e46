# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose an NVMe controller is: /run/nvme/registry, which libnvme, nvme-stas and others read.

    /run/nvme/registry/nvme0/owner            "storaged-conn", or another's name
    /run/nvme/registry/nvme0/seqnum           the kernel's count of events then
    /run/nvme/registry/nvme0/storaged-conn    which controller it is about, and its URI: our own

`nvme disconnect-all` leaves alone what has an owner. No entry means that nobody has claimed it. An
entry of a controller that is gone stays where libnvme's udev rule is not installed, and its name
comes again soon: so ours says which controller it was.

Source: nvme-cli, libnvme/REGISTRY.md (3.0).
"""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from storaged_conn.system.nvme import Controller, read_line

REGISTRY: Final = Path("/run/nvme/registry")
OWN: Final = "storaged-conn"

SEQNUM: Final = Path("/sys/kernel/uevent_seqnum")
"""Source: Documentation/ABI/testing/sysfs-kernel-uevent_seqnum; libnvme's rule compares it."""


class Registry:
    """The entries, of which only ours are ever changed."""

    def __init__(self, top: Path = REGISTRY) -> None:
        """Nothing is read yet."""
        self._top = top

    def owner(self, controller: Controller) -> str:
        """Name who has claimed a controller, or nobody."""
        owner = read_line(self._top / controller.name / "owner")
        return owner if owner != OWN or self.uri(controller) else ""

    def is_ours(self, controller: Controller) -> bool:
        """Say whether we have claimed it."""
        return self.owner(controller) == OWN

    def uri(self, controller: Controller) -> str:
        """Give what a controller of ours was connected for, or nothing."""
        serial, _, uri = read_line(self._top / controller.name / OWN).partition(" ")
        return uri if serial == str(controller.serial) else ""

    def claim(self, controller: Controller, uri: str) -> None:
        """Say that it is ours; appears whole.

        Raises:
            OSError: it cannot be written.
        """
        self._write(controller, uri)

    def tidy(self, serial: Callable[[str], int]) -> None:
        """Forget what of ours is gone, also while we did not run; it says nothing about another.

        Args:
            serial: gives that of the controller with a name.
        """
        with suppress(OSError):
            for entry in self._top.iterdir():
                ours = read_line(entry / "owner") == OWN
                if ours and read_line(entry / OWN).partition(" ")[0] != str(serial(entry.name)):
                    self._remove(entry.name)

    def _write(self, controller: Controller, uri: str) -> None:
        for directory in reversed((self._top, self._top.parent)):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
        place = Path(tempfile.mkdtemp(prefix=f".{controller.name}-", dir=self._top))
        try:
            place.chmod(0o755)
            for name, text in (
                ("owner", OWN),
                ("seqnum", read_line(SEQNUM)),
                (OWN, f"{controller.serial} {uri}"),
            ):
                (place / name).write_text(f"{text}\n")
                (place / name).chmod(0o644)
            self._remove(controller.name)  # of one that is gone, and had its name
            place.rename(self._top / controller.name)
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _remove(self, name: str) -> None:
        hidden = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self._top))
        with suppress(FileNotFoundError):
            (self._top / name).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
