# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells when there is news of an NVMe controller, which udev has.

Of a loss the kernel sends no event, and `state` in sysfs cannot be waited for: that is the
sentinel's to notice (drivers/nvme.py); of a return it sends one, NVME_EVENT=connected. Source:
drivers/nvme/host/core.c, nvme_change_uevent.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look, Source
from storaged_conn.system.nvme import read_nqn

CLASSES: Final = Path("/sys/class")

KIND: Final = "nvme"
"""Topics of this kind are named by a subsystem, since that is what a target knows."""

ALL: Final = Topic("nvme-controllers", "")
"""News of a controller whose subsystem is not known."""


class NvmeSource(Source):
    """Has what a controller is connected to looked at when there is news of that controller.

    No look is a hint: a controller is what an attempt makes, and the news may be the echo of one.
    """

    def __init__(self, classes: Path = CLASSES) -> None:
        """Nothing is heard before `start`.

        Args:
            classes: /sys/class.
        """
        self._classes = classes
        self._look: Look | None = None
        self._known: dict[str, str] = {}

    def hear(self, name: str) -> None:
        """Hear of a controller, or of a namespace of a subsystem: nvme0 or nvme-subsys0."""
        if self._look is None:
            return
        kind = name.rstrip("0123456789").replace("nvme-subsys", "nvme-subsystem")
        nqn = read_nqn(self._classes / kind / name)
        if nqn:
            self._known[name] = nqn
        else:
            nqn = self._known.pop(name, "")  # it is gone
        self._look(_topic(nqn), hint=False)

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        """See Source; whoever reads udev's messages calls `resync` where some were lost."""
        self._look = look

    def close(self) -> None:
        """See Source."""

    def watch(self, topic: Topic) -> None:
        """See Source; all is heard anyway."""

    def unwatch(self, topic: Topic) -> None:
        """See Source."""


def _topic(nqn: str) -> Topic:
    return Topic(KIND, nqn) if nqn else ALL
