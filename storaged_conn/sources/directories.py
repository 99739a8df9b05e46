# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells when a directory may have come or gone, wherever on its path that happened.

A topic ("directory", PATH) is watched step by step: each directory on the way, from the root on,
for the one name in it that the path goes on with, and the last one for itself. Links are followed
as the kernel would. So it is heard of when any of them is made, removed or renamed, and what exists
no longer is not watched. Mounts over the way are heard of from the table of mounts.

What is below a network or a FUSE file system is not watched: to set a watch there may hang, and
this is the event loop's thread. The server's own changes would not be told anyway (inotify(7)).
Where the kernel has no more watches to give (fs.inotify.max_user_watches), the way is watched as
far as they go; the slow audit finds the rest.
"""

import asyncio
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from storaged_conn.core.model import Topic
from storaged_conn.sources.base import Look, Source
from storaged_conn.system.inotify import (
    CREATE,
    DELETE,
    DELETE_SELF,
    DONT_FOLLOW,
    IGNORED,
    MOVE_SELF,
    MOVED_FROM,
    MOVED_TO,
    ONLYDIR,
    OVERFLOW,
    Inotify,
)
from storaged_conn.system.mountinfo import Mount, MountTable

KIND: Final = "directory"

MASK: Final = (
    CREATE | DELETE | MOVED_FROM | MOVED_TO | DELETE_SELF | MOVE_SELF | ONLYDIR | DONT_FOLLOW
)

MAX_LINKS: Final = 8
"""Symbolic links that are followed on one way; more are a loop or a maze."""

Step = tuple[int, str]
"""A watch, and the name in that directory that matters; the empty name is the directory itself."""


class DirectorySource(Source):
    """Watches the ways to directories, and to image files just the same."""

    def __init__(self, table: MountTable) -> None:
        """Nothing is watched before `start`."""
        self._table = table
        self._inotify: Inotify | None = None
        self._ways: dict[Topic, list[Step]] = {}
        self._concerned: dict[int, dict[str, set[Topic]]] = {}
        self._below: dict[str, set[Topic]] = {}

    def start(self, look: Look, resync: Callable[[], None]) -> None:
        """See Source."""
        self._look, self._resync = look, resync
        self._inotify = Inotify()
        asyncio.get_running_loop().add_reader(self._inotify.fd, self._read)
        self._table.listeners.append(self._mounts_changed)
        for topic in self._ways:
            self._walk(topic)

    def close(self) -> None:
        """See Source."""
        if self._inotify is None:
            return
        asyncio.get_running_loop().remove_reader(self._inotify.fd)
        self._table.listeners.remove(self._mounts_changed)
        self._inotify.close()
        self._inotify = None

    def watch(self, topic: Topic) -> None:
        """See Source."""
        if topic.kind == KIND:
            self._ways[topic] = []
            for directory in _ancestors(topic.name):
                self._below.setdefault(directory, set()).add(topic)
            self._walk(topic)

    def unwatch(self, topic: Topic) -> None:
        """See Source."""
        if topic not in self._ways:
            return
        for step in self._ways.pop(topic):
            self._leave(topic, step)
        for directory in _ancestors(topic.name):
            self._below[directory].discard(topic)
            if not self._below[directory]:
                del self._below[directory]

    # the way

    def _walk(self, topic: Topic) -> None:
        """Watch the way anew; what it has in common with the old one stays watched throughout."""
        if self._inotify is None:
            return
        old, new = self._ways[topic], []
        for directory, name in self._steps(topic.name):
            try:
                watch = self._inotify.add(directory, MASK)
            except OSError:  # gone again, or no more watches
                break
            new.append((watch, name))
            self._concerned.setdefault(watch, {}).setdefault(name, set()).add(topic)
        self._ways[topic] = new
        for step in set(old) - set(new):
            self._leave(topic, step)

    def _steps(self, path: str) -> Iterator[tuple[str, str]]:
        """Give the directories on a way, each with the name that it goes on with.

        Each is to be watched before the next is asked for, so that nothing comes in between.
        """
        here, todo, links = "/", path.strip("/").split("/")[::-1], MAX_LINKS
        while todo and self._may_watch(here):
            name = todo.pop()
            if name == "..":
                here = posixpath.dirname(here)
                continue
            yield here, name
            there = posixpath.join(here, name)
            if not self._may_watch(there):
                return
            link = _link(there)
            if link is None:
                here = there
                continue
            links -= 1
            if not links:
                return
            todo += [part for part in link.split("/") if part not in {"", "."}][::-1]
            here = "/" if link.startswith("/") else here
        if self._may_watch(here):
            yield here, ""

    def _may_watch(self, path: str) -> bool:
        mount = self._table.covering(path)
        return mount is not None and mount.local and mount.fstype != "autofs"

    def _leave(self, topic: Topic, step: Step) -> None:
        watch, name = step
        names = self._concerned.get(watch, {})
        names.get(name, set()).discard(topic)
        if not names.get(name):
            names.pop(name, None)
        if not names and self._concerned.pop(watch, None) is not None and self._inotify:
            self._inotify.remove(watch)

    # news

    def _read(self) -> None:
        assert self._inotify is not None
        touched: dict[Topic, None] = {}
        for event in self._inotify.read():
            if event.mask & OVERFLOW:
                touched |= dict.fromkeys(self._ways)
                self._resync()
            names = self._concerned.get(event.watch, {})
            for topics in [names.get(event.name, ())] if event.name else names.values():
                touched |= dict.fromkeys(topics)
            if event.mask & IGNORED:  # the kernel has removed the watch
                self._concerned.pop(event.watch, None)
        self._news(touched)

    def _mounts_changed(self, added: Sequence[Mount], removed: Sequence[Mount]) -> None:
        touched: dict[Topic, None] = {}
        for mount in (*added, *removed):
            touched |= dict.fromkeys(self._below.get(mount.target, ()))
        self._news(touched)

    def _news(self, topics: dict[Topic, None]) -> None:
        for topic in topics:
            self._walk(topic)
            self._look(topic, hint=True)


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:  # no link, or nothing there
        return None


def _ancestors(path: str) -> Iterator[str]:
    """Give a path and all directories above it."""
    while path != "/":
        yield path
        path = posixpath.dirname(path)
    yield "/"
