# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the system mounts for itself: what is there is no storage connection, and is not listed."""

from typing import Final

SYSTEM: Final = frozenset(
    {"/", "/efi", "/etc", "/nix", "/ostree", "/sysroot", "/usr", "/var", "/var/log"}
    | {"/tmp", "/var/tmp"}  # noqa: S108  # names to compare with; nothing is made there
)
"""Where the system's own file systems are, which are not listed; /home and the like are."""

SYSTEM_TREES: Final = (
    "/boot/",
    "/dev/",
    "/nix/",
    "/proc/",
    "/run/",
    "/snap/",
    "/sys/",
    "/var/lib/containerd/",
    "/var/lib/containers/",
    "/var/lib/docker/",
    "/var/lib/flatpak/",
    "/var/lib/kubelet/",
    "/var/lib/lxc/",
    "/var/lib/lxd/",
    "/var/lib/machines/",
    "/var/snap/",
)
"""Below (and at) these is the system's and the containers' own business."""

USER_TREES: Final = ("/run/media/",)
"""What udisks mounts for a user is storage all the same."""


def is_system(target: str) -> bool:
    """Say whether what is mounted here is the system's own business."""
    inside = f"{target}/"
    return target in SYSTEM or (
        inside.startswith(SYSTEM_TREES) and not inside.startswith(USER_TREES)
    )
