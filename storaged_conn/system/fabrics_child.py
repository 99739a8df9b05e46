# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connects or deletes one NVMe controller, in a process of its own, since the kernel may hold it.

Run by fabrics.py with `python -I -S`, so it imports little, and starts in 15 ms.

    fabrics_child.py connect                   what /dev/nvme-fabrics wants is on the standard input
    fabrics_child.py delete NAME SERIAL WAIT   only if it is still that one, see below
    fabrics_child.py check                     whether the kernel could; the same on the input

It prints one line: `done` with what the kernel answered, `errno` with a number, or `lacks` with a
word that this kernel does not know. The keys come by the standard input, for everybody can read a
command line, and go nowhere else: the kernel shows them to everybody in sysfs (Linux 6.12: mode
0444), so that is closed first of all.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

FABRICS = "/dev/nvme-fabrics"
CLASS = "/sys/class/nvme"

SYMBOLS = "/proc/kallsyms"

KEYS = ("dhchap_secret", "dhchap_ctrl_secret")


def connect() -> str:
    """Make a controller; takes as long as the server does, and cannot be undone meanwhile."""
    line = sys.stdin.buffer.read()
    missing = lacks(line)
    if missing:
        return f"lacks {missing}"
    device = os.open(FABRICS, os.O_RDWR | os.O_CLOEXEC)
    with hiding(line):
        os.write(device, line)
    return f"done {os.read(device, 256).decode().strip()}"


def check() -> str:
    """See that the kernel could make a controller, and change nothing."""
    missing = lacks(sys.stdin.buffer.read())
    return f"lacks {missing}" if missing else "done"


def lacks(line: bytes) -> str:
    """Give a word that this kernel does not know, or takes without a meaning; or nothing."""
    known = tokens()
    for word in line.split(b","):
        name = word.partition(b"=")[0].decode()
        if (known and name not in known) or (name in KEYS and not authenticates()):
            return name
    return ""


def tokens() -> set[str]:
    """Read which words this kernel knows; none before Linux 5.17, which says nothing."""
    device = os.open(FABRICS, os.O_RDWR | os.O_CLOEXEC)
    try:
        text = os.read(device, 4096).decode()
    except OSError:
        return set()
    finally:
        os.close(device)
    return {word.partition("=")[0].strip() for word in text.split(",")}


def authenticates() -> bool:
    """Say whether this kernel knows DH-HMAC-CHAP.

    One without it (Debian's 6.1 for clouds) lists the words for the keys, takes them, and connects
    without them: whoever asked for a key would not have what it is there for.
    """
    with open(SYMBOLS, "rb") as symbols:
        return any(b" nvme_auth_negotiate" in line for line in symbols)


@contextmanager
def hiding(line: bytes) -> Iterator[None]:
    """Let nobody but root read the keys of what is being made, as soon as it is there.

    It is there long before the write ends: for as long as the server takes to answer.
    """
    fields = dict(word.partition(b"=")[::2] for word in line.split(b","))
    nqn, done = fields.get(b"nqn", b""), threading.Event()
    watcher = threading.Thread(target=hide, args=(nqn, done))
    if any(name.encode() in fields for name in KEYS):
        watcher.start()
    try:
        yield
    finally:
        done.set()
        if watcher.ident:
            watcher.join()


def hide(nqn: bytes, done: threading.Event) -> None:
    """Close the keys of all controllers of a subsystem, again and again, and a last time."""
    last = False
    while not last:
        last = done.wait(0.01)
        for controller in os.scandir(CLASS):
            for name in KEYS:
                try:
                    with open(f"{controller.path}/subsysnqn", "rb") as file:
                        if file.read().strip() == nqn:
                            os.chmod(f"{controller.path}/{name}", 0o600)
                except OSError:
                    continue  # it goes just now, or this kernel has none


def delete(name: str, serial: str, wait: str) -> str:
    """Delete a controller, whatever uses it.

    From a server that is silent, the kernel takes leave for a minute (nvme_core's admin_timeout),
    unless it knows that already: then it takes none. So that is waited for, as long as is said. Its
    `state` sends no event, and this process is there to wait.
    """
    try:
        directory = os.open(f"{CLASS}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return "done"
    if os.fstat(directory).st_ino != int(serial):
        return "done"  # another has its name by now
    try:
        deadline = time.monotonic() + float(wait)
        while read(directory, "state") == "live" and time.monotonic() < deadline:
            time.sleep(0.05)
        file = os.open("delete_controller", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
        os.write(file, b"1")
    except (FileNotFoundError, ProcessLookupError):
        pass  # it went meanwhile
    return "done"


def read(directory: int, name: str) -> str:
    """Read an attribute of a controller."""
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(file, 256).decode().strip()
    finally:
        os.close(file)


def main(verb: str, *arguments: str) -> str:
    """Do it, and say how it went."""
    try:
        match verb:
            case "connect":
                return connect()
            case "delete":
                return delete(*arguments)
            case _:
                return check()
    except OSError as error:
        return f"errno {error.errno}"


if __name__ == "__main__":
    print(main(*sys.argv[1:]))  # noqa: T201  # its answer
