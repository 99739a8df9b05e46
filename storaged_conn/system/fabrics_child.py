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
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

FABRICS = "/dev/nvme-fabrics"
CLASS = "/sys/class/nvme"

KEYS = ("dhchap_secret", "dhchap_ctrl_secret")


def connect() -> str:
    """Make a controller; takes as long as the server does, and cannot be undone meanwhile."""
    line = sys.stdin.buffer.read()
    missing = lacks(line)
    if missing:
        return f"lacks {missing}"
    device = os.open(FABRICS, os.O_RDWR | os.O_CLOEXEC)
    with watching(line) as keyless:
        try:
            os.write(device, line)
        except OSError as error:
            failure = f"errno {error.errno}"
        else:
            failure = ""
    answer = "" if failure else os.read(device, 256).decode().strip()
    if keyless:
        undo(answer)
        return f"lacks {KEYS[0]}"
    return failure or f"done {answer}"


def check() -> str:
    """See that the kernel could make a controller, and change nothing."""
    missing = lacks(sys.stdin.buffer.read())
    return f"lacks {missing}" if missing else "done"


def lacks(line: bytes) -> str:
    """Give a word that this kernel does not know, or nothing."""
    known = tokens()
    for word in line.split(b","):
        name = word.partition(b"=")[0].decode()
        if known and name not in known:
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


@contextmanager
def watching(line: bytes) -> Iterator[set[str]]:
    """Watch what is being made with a key: it is there for as long as the server takes to answer.

    Gives the controllers that know of no keys. A kernel without DH-HMAC-CHAP (Debian's 6.1 for
    clouds) lists the words for the keys, takes them, and connects without them: whoever asked for a
    key would not have what it is there for.
    """
    keyless: set[str] = set()
    done = threading.Event()
    before = {one.inode() for one in os.scandir(CLASS)}  # never given out again, see system/nvme.py
    watcher = threading.Thread(target=watch, args=(before, done, keyless))
    if any(word.partition(b"=")[0].decode() in KEYS for word in line.split(b",")):
        watcher.start()
    try:
        yield keyless
    finally:
        done.set()
        if watcher.ident:
            watcher.join()


def watch(before: set[int], done: threading.Event, keyless: set[str]) -> None:
    """Close the keys of all new controllers, again and again, and a last time.

    Which one is ours cannot be told: it has its subsystem's name only after the authentication.
    """
    last = False
    while not last:
        last = done.wait(0.01)
        for controller in os.scandir(CLASS):
            if controller.inode() in before or not at_fabric(controller.path):
                continue
            if not close(controller.path) and at_fabric(controller.path):
                keyless.add(controller.name)


def at_fabric(controller: str) -> bool:
    """Say whether this is a controller at a fabric with all of its attributes.

    `dev` is the last of them to come and the first to go. Source: drivers/base/core.c, device_add
    and device_del.
    """
    try:
        with open(f"{controller}/transport", "rb") as file:
            return file.read().strip() != b"pcie" and os.path.exists(f"{controller}/dev")
    except OSError:
        return False


def close(controller: str) -> bool:
    """Let nobody but root read a controller's keys; False where it has none."""
    try:
        for name in KEYS:
            os.chmod(f"{controller}/{name}", 0o600)
    except OSError:
        return False
    return True


def undo(answer: str) -> None:
    """Delete what was made, if it was."""
    match = re.search("instance=([0-9]+)", answer)
    if match:
        with open(f"{CLASS}/nvme{match[1]}/delete_controller", "wb", buffering=0) as file:
            file.write(b"1")


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
