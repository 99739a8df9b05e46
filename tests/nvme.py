# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host's NVMe controllers in a directory that looks like /sys, without a kernel.

Source of what is in there: Linux 6.1, as it was read in a guest.
"""

import re
import shutil
from pathlib import Path

from storaged_conn.system.nvme import Controllers

NQN = "nqn.2014-08.org.example:a"
HOST = "nqn.2014-08.org.example:host"


class Kernel:
    """What it has connected.

    Attributes:
        controllers: reads it.
    """

    def __init__(self, top: Path) -> None:
        self.sys = top / "sys"
        self.udev = top / "udev"
        self.control = top / "control"
        (self.sys / "class/nvme").mkdir(parents=True)
        self.udev.mkdir()
        self.control.touch()
        self.controllers = Controllers(self.sys, self.udev, self.control)

    def connect(self, name: str, nqn: str = NQN, **attributes: str) -> Path:
        """Make a controller, live unless its `state` is given."""
        top = self.sys / "class/nvme" / name
        top.mkdir()
        given = {
            "transport": "tcp",
            "address": "traddr=10.0.0.1,trsvcid=4420,src_addr=10.0.0.9",
            "state": "live",
            "hostnqn": HOST,
            "hostid": "11111111-2222-3333-4444-555555555555",
            "kato": "5",
            "cntlid": "1",
            "queue_count": "3",
            "ctrl_loss_tmo": "off",
            "reconnect_delay": "1",
        }
        for key, value in {**given, **attributes, "subsysnqn": nqn}.items():
            (top / key).write_text(f"{value}\n")
        return top

    def add(self, controller: str, path: str, device: str, *links: str, nsid: int = 1) -> None:
        """Add a namespace by a controller's path to it, such as nvme0c1n1; udev has seen it."""
        head = re.sub("c[0-9]+", "", path)
        (self.sys / "class/nvme" / controller / path).mkdir()
        block = self.sys / "class/block" / head
        block.mkdir(parents=True, exist_ok=True)
        (block / "dev").write_text(f"{device}\n")
        (block / "nsid").write_text(f"{nsid}\n")
        lines = [f"S:{link.removeprefix('/dev/')}" for link in links]
        (self.udev / f"b{device}").write_text("\n".join(lines))

    def say(self, name: str, state: str) -> None:
        """Change a controller's state."""
        (self.sys / "class/nvme" / name / "state").write_text(f"{state}\n")

    def remove(self, name: str) -> None:
        """Let a controller go."""
        shutil.rmtree(self.sys / "class/nvme" / name)
