# SPDX-License-Identifier: LGPL-2.1-or-later
"""The options of NFS mounts: what clients may give, what mount.nfs gets, and what the kernel shows.

The default is `hard`: whoever writes waits for the server for as long as it takes, and loses
nothing. `soft` and `softerr` end in an error, after which what was written may be lost.

Source: nfs(5).
"""

import re
from collections.abc import Mapping
from typing import Final

from storaged_conn.core.model import Target, Value
from storaged_conn.drivers.flags import read_flags
from storaged_conn.drivers.mount import MountDriver
from storaged_conn.drivers.nfs_remote import Remote
from storaged_conn.errors import InvalidArgumentError
from storaged_conn.system.mountinfo import Mount

OPTIONS: Final[Mapping[str, str]] = {
    **MountDriver.options,
    "version": "s",  # one of VERSIONS; "auto", the default: the highest that both sides know
    "hard": "b",  # the default: wait for the server for ever
    "soft": "b",  # give up after retrans retries, with EIO
    "softerr": "b",  # the same with ETIMEDOUT
    "timeo": "x",  # tenths of a second before a retry; the kernel's default is 600
    "retrans": "x",  # retries before it gives up, or says that it waits; the default is 2
    "port": "x",  # as in the uri
    "sec": "s",  # one of FLAVOURS
    "nconnect": "x",  # TCP connections, up to 16
    "stale": "s",  # one of STALE: what to do when the server has put something else in its place
    "mount-options": "as",  # among FLAGS
}

VERSIONS: Final = ("auto", "3", "4.0", "4.1", "4.2")
FLAVOURS: Final = ("none", "sys", "krb5", "krb5i", "krb5p")
RECOVERIES: Final = ("hard", "soft", "softerr")

STALE: Final = ("remount-if-idle", "always", "never")
"""Mount it anew as soon as nobody uses it, which is the default; at once, and those who use it keep
what is dead; or never."""

RANGES: Final[Mapping[str, range]] = {
    "timeo": range(1, 6001),
    "retrans": range(1001),
    "port": range(1, 65536),
    "nconnect": range(1, 17),
}
"""Source: nfs(5); include/linux/nfs_fs.h, NFS_MAX_TCP_TIMEOUT; fs/nfs/internal.h,
NFS_MAX_CONNECTIONS."""

NUMBER: Final = re.compile("[0-9]{1,10}")
"""Source: fs/nfs/super.c, nfs_show_mount_options: an unsigned int."""

MAX_WAIT_MS: Final = 600_000
"""Source: include/linux/nfs_fs.h, NFS_MAX_TCP_TIMEOUT."""

FLAGS: Final = frozenset(
    {"ac", "acdirmax", "acdirmin", "acl", "acregmax", "acregmin", "actimeo", "async", "clientaddr"}
    | {"context", "cto", "defcontext", "fsc", "fscontext", "local_lock", "lock", "lookupcache"}
    | {"max_connect", "migration", "mountport", "mountproto", "mountvers", "noac", "noacl"}
    | {"noatime", "nocto", "nodiratime", "noexec", "nofsc", "nolock", "nomigration", "nordirplus"}
    | {"noresvport", "nosharecache", "nosoftreval", "notrunkdiscovery", "rdirplus", "relatime"}
    | {"resvport", "rootcontext", "rsize", "sharecache", "softreval", "strictatime", "sync"}
    | {"trunkdiscovery", "write", "wsize", "xprtsec"}
)
"""What may be in `mount-options`. Not in it: what has an option of its own, what changes the server
(addr, mounthost), the transport that is watched (proto, udp, rdma), or who waits (bg, retry)."""

_OWN: Final = OPTIONS.keys() - MountDriver.options.keys() - {"mount-options"}
_CHOICES: Final = {"version": VERSIONS, "sec": FLAVOURS, "stale": STALE}
_DEFAULTS: Final = {"version": "auto", "stale": "remount-if-idle", "hard": True}


def read_own(options: Mapping[str, Value]) -> dict[str, Value]:
    """Check the options that are NFS's, and leave out what is the default.

    The port is left to whoever reads the URI.

    Raises:
        InvalidArgumentError: it names the option.
    """
    own = {name: value for name, value in options.items() if name in _OWN and value is not False}
    for name, value in own.items():
        _check(name, value)
    if len(own.keys() & set(RECOVERIES)) > 1:
        raise InvalidArgumentError("options: give one of hard, soft and softerr")
    if flags := read_flags(options.get("mount-options", ()), _refuse):
        own["mount-options"] = flags
    own.pop("port", None)
    return {name: value for name, value in own.items() if _DEFAULTS.get(name) != value}


def mount_flags(target: Target, remote: Remote, address: str) -> tuple[str, ...]:
    """Give what mount.nfs gets.

    Args:
        target: whose options have been read.
        remote: where it is.
        address: at which the server answers; mount.nfs tries no other family.
    """
    recovery = next((name for name in RECOVERIES if target.option(name)), "hard")
    numbered = {name: target.option(name) for name in ("timeo", "retrans", "sec", "nconnect")}
    given = target.option("mount-options")
    return (
        "retry=0",
        "proto=tcp6" if ":" in address else "proto=tcp",
        f"port={remote.server.port}",
        recovery,
        *([f"vers={target.option('version')}"] if target.option("version") else []),
        *(f"{name}={value}" for name, value in numbered.items() if value is not None),
        *(given if isinstance(given, tuple) else ()),
        *(["ro"] if target.option("read-only") else []),
    )


def describe(mount: Mount) -> dict[str, Value]:
    """Say what the kernel made of it, for ConnectionInfo."""
    shown = dict(flag.partition("=")[::2] for flag in mount.super_options)
    recovery = next((name for name in RECOVERIES if name in shown), "hard")
    timeo, retrans = (_number(shown.get(name, "")) for name in ("timeo", "retrans"))
    texts = {"version": "vers", "protocol": "proto", "sec": "sec", "address": "addr"}
    return {
        **{name: shown[key] for name, key in texts.items() if key in shown},
        "recovery": recovery,
        "timeo": timeo,
        "retrans": retrans,
        "errorAfterMs": 0 if recovery == "hard" else error_after_ms(timeo, retrans),
    }


def error_after_ms(timeo: int, retrans: int) -> int:
    """Give the milliseconds after which a soft mount's call to a dead server ends in an error.

    That is the kernel's own limit; where the connection does not break, as when the server's link
    is cut, NFS 4 waits until TCP gives up, which may take some times as long.

    Source: net/sunrpc/xprt.c, xprt_calc_majortimeo; fs/nfs/client.c, nfs_init_timeout_values.
    """
    return min(timeo * 100 * (retrans + 1), MAX_WAIT_MS)


def _number(text: str) -> int:
    return int(text) if NUMBER.fullmatch(text) else 0


def _check(name: str, value: Value) -> None:
    if name in _CHOICES and value not in _CHOICES[name]:
        known = ", ".join(_CHOICES[name])
        raise InvalidArgumentError(f"options: {name!r} must be one of {known}, not {value!r}")
    if name in RANGES and value not in RANGES[name]:
        low, high = RANGES[name][0], RANGES[name][-1]
        raise InvalidArgumentError(f"options: {name!r} must be from {low} to {high}, not {value}")


def _refuse(name: str) -> None:
    if name in OPTIONS:
        raise InvalidArgumentError(f"options: give {name!r} as an option, not in 'mount-options'")
    if name not in FLAGS:
        known = ", ".join(sorted(FLAGS))
        raise InvalidArgumentError(f"options: 'mount-options' for nfs: one of {known}")
