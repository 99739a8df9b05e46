# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mounts and unmounts one place, in a process of its own, because every step of it may hang.

Run by mounting.py with `python -I -S`, so it imports little, and starts in 15 ms.

The place is named by a root, which the administrator vouches for, and a path below it. The path is
walked from directory to directory, each opened from the one before and never through a symbolic
link, and each must be such that nobody but root can change what is in it. What was opened is what
is used: mount(8) is started *in* the opened directory, told to mount on "." and to leave that as it
is (`--no-canonicalize`), so that nothing that is put in its place later can redirect it. Tried with
util-linux 2.38.1 and 2.41.5.

The mount point itself is made if it is missing, with no permissions, so that a program that fills
it while nothing is mounted fails instead of filling the wrong disk. That holds for everybody but
root, whom permissions do not bind. One that is as we make it goes when nothing is mounted on it.

Exit status: that of mount(8) or umount(8), or one of those below with the reason on stderr.
"""

import os
import stat
import sys

MISSING = 100
"""What is to be mounted is not there."""
REFUSED = 101
"""The place or the source is not fit for it."""
BUSY = 102
"""The place is in use."""
TROUBLE = 103
"""A system call failed."""
UNUSABLE = 104
"""This machine lacks a tool or a file system."""

MOUNT = "/usr/bin/mount"
UMOUNT = "/usr/bin/umount"
MODPROBE = "/usr/sbin/modprobe"

HERE = "/proc/self/cwd"
"""The working directory, whatever its name. Source: proc(5)."""

DETACH = ("--internal-only", "--lazy", "--force")
"""How umount(8) takes away what nobody answers for, see detach."""

_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_KEPT = ((os.ST_RDONLY, "ro"), (os.ST_NOEXEC, "noexec"))


class Stop(Exception):
    """Why it ends, with the exit status."""

    def __init__(self, status: int, why: str) -> None:
        """Keep both."""
        super().__init__(why)
        self.status = status


class Place:
    """A mount point, by the directory that holds it.

    Attributes:
        holder: a descriptor of that directory.
        name: the mount point's name in it.
    """

    def __init__(self, root: str, path: str, *, make: bool) -> None:
        """Walk there.

        Raises:
            Stop: others can change the way, or it is none.
            FileNotFoundError: it is not there, and should not be made.
        """
        *way, self.name = path.split("/")
        self.path = f"{root}/{path}"
        self.holder = os.open(root, _DIRECTORY)
        self._check(root)
        walked = root
        for name in way:
            walked = f"{walked}/{name}"
            self.holder = self._step(name, 0o755, make=make)
            self._check(walked)

    def enter(self, *, make: bool) -> None:
        """Go to the mount point, which must be one that nothing is lost under."""
        here = self._step(self.name, 0, make=make)
        if _mount_id(here) != _mount_id(self.holder):
            raise Stop(BUSY, f"{self.path} is a mount point already")
        os.fchdir(here)
        with os.scandir(".") as entries:
            if next(entries, None):
                raise Stop(BUSY, f"{self.path} is not empty; move away what is in it")

    def mounted(self) -> int | None:
        """Open the root of what is mounted, or give None if nothing is."""
        try:
            here = self._step(self.name, 0, make=False)
        except FileNotFoundError:
            return None
        if _mount_id(here) != _mount_id(self.holder):
            return here
        os.close(here)
        return None

    def has(self, number: str) -> bool:
        """Say whether this mount is there, or none.

        Raises:
            Stop: something else is.
        """
        here = self.mounted()
        if here is None:
            return False
        found = _mount_id(here)
        os.close(here)  # it would keep it busy
        if found != number:
            raise Stop(BUSY, f"{self.path}: something else is mounted there now")
        return True

    def unmount(self, *how: str) -> int:
        """Run umount(8) on what the opened directory holds, by whatever name that has by now.

        Not on ./NAME: libmount puts the name of the working directory before that, and hands it to
        the kernel, which follows what links there are by then. It knows no mount by this path, so
        that it asks no helper: umount.nfs would only tell a server of version 3 not to list us.
        """
        os.fchdir(self.holder)
        return _tool(UMOUNT, "--no-canonicalize", *how, "--", f"{HERE}/{self.name}")

    def tidy(self) -> None:
        """Remove the mount point if it is as we make it; one with a purpose of its own stays."""
        try:
            found = os.stat(self.name, dir_fd=self.holder, follow_symlinks=False)
            if found.st_mode == stat.S_IFDIR and found.st_uid == os.geteuid():
                os.rmdir(self.name, dir_fd=self.holder)
        except OSError:
            pass  # gone, in use or not empty

    def _step(self, name: str, mode: int, *, make: bool) -> int:
        if make:
            self._make(name, mode)
        try:
            return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self.holder)
        except NotADirectoryError:
            why = f"{self.path}: {name!r} is a symbolic link or a file; name a real directory"
            raise Stop(REFUSED, why) from None

    def _make(self, name: str, mode: int) -> None:
        try:
            os.mkdir(name, mode, dir_fd=self.holder)
        except FileExistsError:
            return  # mostly so

    def _check(self, walked: str) -> None:
        found = os.fstat(self.holder)
        if found.st_uid not in {0, os.geteuid()} or found.st_mode & _OTHERS_WRITE:
            why = f"{walked}: others than root can change it; give it to root, chmod go-w"
            raise Stop(REFUSED, why)


def mount(root: str, path: str, fstype: str, options: str, source: str) -> int:
    """Mount a file system; the options are handed on as they are."""
    _look_at(source)
    status = _mount_on(Place(root, path, make=True), "-t", fstype, "-o", options, "--", source)
    if status:
        _look_at(source)  # it may have gone meanwhile, and mount(8) does not tell that apart
    return status


def bind(root: str, path: str, options: str, source: str) -> int:
    """Mount a directory a second time, then restrict it, or undo it.

    In two steps, because libmount 2.38 looks for the second one under "." in vain: there it is
    still what the mount hides. The second step drops the flags that a bind mount takes over, so
    those that restrict are given again (mount(8), Bind mount operation).
    """
    _look_at_directory(source)
    place = Place(root, path, make=True)
    if status := _mount_on(place, "--bind", "--", source):
        return status
    status = TROUBLE
    try:
        status = _restrict(place, options)
    finally:
        if status:
            place.unmount()
            place.tidy()
    return status


def umount(root: str, path: str, number: str) -> int:
    """Unmount what has this mount id, and nothing that was mounted there instead meanwhile."""
    place = _find(root, path)
    if place is None:
        return 0
    if place.has(number):
        status = place.unmount()
        if status and place.mounted() is not None:
            return status
    place.tidy()
    return 0


def detach(root: str, path: str) -> int:
    """Take away what is mounted from a server that does not answer, whoever still uses it.

    What is mounted is not looked at, since that would hang; so it is for the caller to know what it
    is. Nor is umount.nfs asked, which would tell the server. It may take a minute until this ends,
    and the mount is gone at once: whoever waits believes the table, and then has it tidied.
    """
    return Place(root, path, make=False).unmount(*DETACH)


def prepare(root: str, path: str, source: str) -> int:
    """Make a place ready for somebody else to mount on, and refuse one that is not fit for it."""
    _look_at(source)
    Place(root, path, make=True).enter(make=True)
    return 0


def prepare_bind(root: str, path: str, source: str) -> int:
    """Do so for a bind mount, and print which restrictions it must take over."""
    _look_at_directory(source)
    sys.stdout.write(",".join(_kept(os.statvfs(source))))
    return prepare(root, path, source)


def tidy(root: str, path: str) -> int:
    """Remove a mount point that nothing is mounted on, if it is as we make it."""
    place = _find(root, path)
    if place:
        place.tidy()
    return 0


def check(root: str, path: str, fstype: str, source: str) -> int:
    """Find out what would stop a mount, or a bind mount (no fstype), and change nothing."""
    mode = _look_at(source)
    if not fstype and not stat.S_ISDIR(mode):
        raise Stop(MISSING, f"{source} is not a directory")
    if fstype and not _is_known(fstype):
        raise Stop(UNUSABLE, f"file system {fstype!r} is unknown; install what brings it")
    try:
        Place(root, path, make=False).enter(make=False)
    except FileNotFoundError:
        return 0  # it would be made
    return 0


def _find(root: str, path: str) -> Place | None:
    try:
        return Place(root, path, make=False)
    except FileNotFoundError:
        return None


def _mount_on(place: Place, *arguments: str) -> int:
    status = TROUBLE
    try:
        place.enter(make=True)
        status = _tool(MOUNT, "--no-canonicalize", *arguments, ".")
    finally:
        if status:
            place.tidy()
    return status


def _restrict(place: Place, options: str) -> int:
    here = place.mounted()
    if here is None:
        raise Stop(TROUBLE, f"{place.path}: the mount is gone again")
    os.fchdir(here)
    kept = _kept(os.fstatvfs(here))
    os.close(here)
    flags = ",".join(["remount", "bind", *kept, options])
    return _tool(MOUNT, "--no-canonicalize", "-o", flags, "--", "none", ".")


def _kept(found: os.statvfs_result) -> list[str]:
    return [name for flag, name in _KEPT if found.f_flag & flag]


def _look_at_directory(source: str) -> None:
    if not stat.S_ISDIR(_look_at(source)):
        raise Stop(MISSING, f"{source} is not a directory")


def _look_at(source: str) -> int:
    """Give the mode of a source that is a path; there is no looking at tags and servers."""
    if not source.startswith("/") or source.startswith("//"):
        return 0
    try:
        return os.stat(source).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise Stop(MISSING, f"{source} is not there; it is taken up when it is") from None


def _is_known(fstype: str) -> bool:
    with open("/proc/filesystems", encoding="ascii") as file:
        if any(line.split()[-1] == fstype for line in file):
            return True
    helper = fstype.partition(".")[0]  # source: mount(8), External helpers
    if any(os.path.exists(f"{place}/mount.{helper}") for place in ("/usr/sbin", "/sbin")):
        return True
    return os.path.exists(MODPROBE) and not _tool(MODPROBE, "-n", "-q", f"fs-{fstype}")


def _mount_id(fd: int) -> str:
    """Read the id of the mount that a descriptor is on. Source: proc(5), fdinfo, mnt_id."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    return fields["mnt_id"].strip()


def _tool(*argv: str) -> int:
    try:
        pid = os.posix_spawn(argv[0], argv, os.environ)
    except FileNotFoundError:
        raise Stop(UNUSABLE, f"{argv[0]} is not installed") from None
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status  # a signal, as sh(1) tells it


def main(verb: str, *arguments: str) -> int:
    """Do it, and turn what stopped it into an exit status and a line on stderr."""
    os.umask(0o022)
    try:
        return _do(verb, *arguments)
    except Stop as stop:
        status, why = stop.status, str(stop)
    except PermissionError as error:
        status, why = REFUSED, f"{error.filename or arguments[1]}: {error.strerror}"
    except OSError as error:
        status, why = TROUBLE, f"{error.filename or arguments[1]}: {error.strerror}"
    sys.stderr.write(f"{why}\n")
    return status


def _do(verb: str, *arguments: str) -> int:
    verbs = (mount, bind, umount, detach, prepare, prepare_bind, tidy, check)
    return next(one for one in verbs if one.__name__ == verb)(*arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
