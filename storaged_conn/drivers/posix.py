# SPDX-License-Identifier: LGPL-2.1-or-later
"""`posix+FSTYPE:SOURCE`: any file system that mount(8) knows, on a device, an image or a server."""

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Final
from urllib.parse import quote, unquote_to_bytes

from storaged_conn.core.model import Foreign, Observation, Present, Target, Topic, Value
from storaged_conn.drivers.flags import read_flags
from storaged_conn.drivers.mount import MountDriver
from storaged_conn.drivers.paths import decode, straighten
from storaged_conn.drivers.places import is_system
from storaged_conn.errors import BusyError, InvalidArgumentError
from storaged_conn.system.devices import device_node
from storaged_conn.system.mountinfo import Mount
from storaged_conn.system.mounting import Place, check

PREFIX: Final = "posix+"

FUSE: Final = frozenset({"ceph-fuse", "curlftpfs", "glusterfs", "rclone", "s3fs", "sshfs"})
"""The programs that `fuse.NAME` may start, all of which mount storage of a server: mount.fuse(8)
runs whatever is named, as root."""

FUSE_OPTIONS: Final = frozenset(
    {"allow_other", "default_permissions", "gid", "max_read", "noatime", "noexec", "reconnect"}
    | {"ServerAliveCountMax", "ServerAliveInterval", "uid", "umask"}
)
"""The options that these programs get: others name commands to run, such as sshfs's ssh_command."""

NETWORK: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "orangefs", "smb3"}
    | {"virtiofs"}
    | {f"fuse.{program}" for program in FUSE}
)
"""The types whose mounts are listed wherever their sources are; others are if on a block device."""

NFS: Final = frozenset({"nfs", "nfs4"})
"""The types that have a driver of their own."""

READ_ONLY: Final = frozenset({"cramfs", "erofs", "iso9660", "romfs", "squashfs", "udf"})
"""The types that are, or may be, read-only by nature."""

UNC: Final = frozenset({"cifs", "smb3"})
"""The types whose sources begin with two slashes. Source: mount.cifs(8)."""

PSEUDO: Final = frozenset(
    {"auto", "autofs", "bdev", "binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs"}
    | {"cpuset", "debugfs", "devpts", "devtmpfs", "efivarfs", "fuse", "fuse2", "fuse3", "fusectl"}
    | {"hugetlbfs", "mqueue", "nsfs", "overlay", "pipefs", "proc", "pstore", "ramfs", "resctrl"}
    | {"rootfs", "rpc_pipefs", "securityfs", "selinuxfs", "smackfs", "sockfs", "swap", "sysfs"}
    | {"tmpfs", "tracefs"}
)
"""The types that are no storage, and those that say too little about which."""

DENIED: Final = frozenset(
    {"bind", "cred", "credentials", "defaults", "dev", "group", "helper", "loop", "move"}
    | {"offset", "owner", "private", "rbind", "remount", "ro", "rprivate", "rshared", "rslave"}
    | {"runbindable", "rw", "shared", "sizelimit", "slave", "suid", "uhelper", "unbindable", "user"}
    | {"users"}
)
"""Mount options that undo ours, mean another operation, or are for fstab(5). Source: mount(8)."""

DENIED_STARTS: Final = ("make-", "pass", "secret", "verity.", "x-")
"""How other such names begin, in any case: helpers, hashes, and secrets, which are not given so."""

_FSTYPE: Final = re.compile(r"[a-z0-9][a-z0-9._+-]{0,31}")
_TAG: Final = re.compile(r"(UUID|LABEL|PARTUUID|PARTLABEL|ID)=")


class PosixDriver(MountDriver):
    """Mounts any file system."""

    options: ClassVar[Mapping[str, str]] = {**MountDriver.options, "mount-options": "as"}

    def serves(self, scheme: str) -> bool:
        """See Driver."""
        return scheme.startswith(PREFIX)

    def schemes(self) -> tuple[str, ...]:
        """See Driver."""
        return (f"{PREFIX}FSTYPE",)

    def parse(self, uri: str, options: Mapping[str, Value]) -> Target:
        """See Driver."""
        scheme, _, rest = uri.partition(":")
        fstype = _read_fstype(scheme.lower().removeprefix(PREFIX))
        source = _read_source(fstype, rest)
        common = self.read_common(options)
        refuse = partial(_check_mount_option, fstype)
        if flags := read_flags(options.get("mount-options", ()), refuse):
            common["mount-options"] = flags
        return Target(_uri(fstype, source), tuple(sorted(common.items())))

    def topics(self, target: Target) -> frozenset[Topic]:
        """See Driver; the source by the name given, since where links in /dev lead may change."""
        _, source = _split(target)
        names = {Topic("source", source)}
        if source.startswith("/") and not source.startswith(("//", "/dev/")):
            names.add(Topic("directory", source))  # an image that may come
        return super().topics(target) | names

    def matches(self, target: Target, mount: Mount) -> bool:
        """See MountDriver."""
        fstype, source = _split(target)
        same_type = mount.fstype in {fstype, f"fuse.{fstype}"}
        same_source = source in mount.names or device_node(source) in mount.names
        return same_type and same_source and mount.whole

    def candidates(self, target: Target) -> Iterator[Mount]:
        """See MountDriver; options that nobody but us gave rule out what others mounted."""
        if target.option("mount-options"):
            return
        _, source = _split(target)
        for other in self.table.named(device_node(source)) or self.table.named(source):
            agrees = other.read_only == bool(target.option("read-only"))
            if agrees and other.root == "/" and self.matches(target, other):
                yield other

    async def attach(self, target: Target, place: Place) -> None:
        """See MountDriver."""
        fstype, source = _split(target)
        flags = target.option("mount-options")
        given = flags if isinstance(flags, tuple) else ()
        read_only = ("ro",) if target.option("read-only") else ()
        await self.mounter.mount(source, fstype, (*given, *read_only), place)
        if not read_only and fstype not in READ_ONLY:
            await self._check_writable(source, place)

    async def _check_writable(self, source: str, place: Place) -> None:
        """Undo a mount that cannot be written, which mount(8) makes where it may not have better.

        So it does with an image that is still mounted elsewhere read-only.
        """
        self.table.refresh()
        mount = self.table.at(place.target)
        if mount and mount.read_only:
            await self.mounter.unmount(place, mount.id)
            raise BusyError(f"{source} cannot be written now; see who uses it, or give 'read-only'")

    async def validate(self, target: Target) -> None:
        """See Driver."""
        self.table.refresh()
        found: Observation = self.look_up(target)
        if not isinstance(found, Present):
            fstype, source = _split(target)
            await check(source, fstype, self.place(target))

    def foreign(self, known: Container[str] = ()) -> Iterable[Foreign]:
        """See Driver; whatever is storage, of this machine or of a server, and not the system."""
        for mounted in (self.table.mounts or {}).values():
            if self._is_storage(mounted) and self.is_seen(mounted):
                uri = _uri(mounted.fstype, mounted.names[0])
                if self._can_name(uri):
                    yield self.listed(uri, mounted)

    def _is_storage(self, mounted: Mount) -> bool:
        if not mounted.whole or mounted.fstype in PSEUDO:
            return False
        if mounted.fstype not in NETWORK and not mounted.source.startswith("/dev/"):
            return False
        return self.is_ours_by_place(mounted) or not is_system(mounted.target)

    def _can_name(self, uri: str) -> bool:
        try:
            return self.parse(uri, {}).uri == uri
        except InvalidArgumentError:
            return False


def _uri(fstype: str, source: str) -> str:
    return f"{PREFIX}{fstype}:{quote(os.fsencode(source), safe='/:@,=+~')}"


def _split(target: Target) -> tuple[str, str]:
    scheme, _, source = target.uri.partition(":")
    return scheme.removeprefix(PREFIX), os.fsdecode(unquote_to_bytes(source))


def _read_fstype(fstype: str) -> str:
    if not _FSTYPE.fullmatch(fstype):
        raise InvalidArgumentError("uri: write it as posix+FSTYPE:SOURCE")
    if fstype in NFS:
        raise InvalidArgumentError("uri: write it as nfs://HOST/EXPORT")
    if fstype in PSEUDO or fstype.startswith("no"):  # mount(8): "no" makes it all other types
        raise InvalidArgumentError(f"uri: {fstype!r} is no type of storage; name one, such as ext4")
    program = fstype.removeprefix("fuse.")
    if program != fstype and program not in FUSE:
        known = ", ".join(sorted(FUSE))
        raise InvalidArgumentError(f"uri: fuse.{program} is not among the known: {known}")
    return fstype


def _read_source(fstype: str, quoted: str) -> str:
    source = decode(quoted, "uri: the source")
    if source.startswith("-"):
        raise InvalidArgumentError("uri: a source does not begin with '-'")
    if _TAG.match(source):
        raise InvalidArgumentError("uri: name the device by its path, such as /dev/disk/by-uuid/X")
    if not source.startswith("/"):
        return source
    path = straighten(source)
    if fstype not in UNC or not source.startswith("//"):
        return path
    if "@" in path.split("/")[1]:
        raise InvalidArgumentError("uri: the server has a user or password before it")
    return f"/{path}"


def _check_mount_option(fstype: str, name: str) -> None:
    key = name.lower()
    if key in DENIED or key.startswith(DENIED_STARTS):
        raise InvalidArgumentError(f"options: 'mount-options': {name!r} is not accepted")
    if fstype.removeprefix("fuse.") in FUSE and name not in FUSE_OPTIONS:
        known = ", ".join(sorted(FUSE_OPTIONS))
        raise InvalidArgumentError(f"options: 'mount-options' for {fstype}: one of {known}")
