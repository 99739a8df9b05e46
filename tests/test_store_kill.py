# SPDX-License-Identifier: LGPL-2.1-or-later
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stores import records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "connections.db"


NURSERY = """
import asyncio, os, sys
from pathlib import Path
from storaged_conn.core.model import Record
from storaged_conn.core.secret import Secret
from storaged_conn.store import Store

def say(what, cid): os.write(1, f"{what} {cid}\\n".encode())

async def work(store, name):
    for number in range(100000):
        cid = f"{name}.{number}"
        options = {"password": Secret(f"canary {cid};".encode() * (1 + number * 7 % 30))}
        await store.add(Record(cid, "file:///" + "x" * (number * 37 % 3000), options))
        say("added", cid)
        if number >= 3:
            cid = f"{name}.{number - 3}"
            say("removing", cid)
            await store.remove(cid)
            say("removed", cid)

async def life():
    store = Store(Path(sys.argv[1]))
    store.open()
    names = [f"{os.getpid()}.{number}" for number in range(4)]
    await asyncio.gather(*(work(store, name) for name in names))

while sys.stdin.readline():
    pid = os.fork()
    if not pid:
        asyncio.run(life())
    os.write(1, f"born {pid}\\n".encode())
    os.waitpid(pid, 0)
    os.write(1, b"dead -\\n")
"""


class Witness:
    """Believes what children said before they died."""

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.gone: set[str] = set()

    def hear(self, what: str, cid: str) -> None:
        match what:
            case "added":
                self.kept.add(cid)
            case "removing":
                self.kept.remove(cid)
            case _:
                self.gone.add(cid)


def test_kill_9_loses_nothing_that_was_promised_and_leaves_no_secret(path: Path) -> None:
    choice = random.Random(9)
    witness = Witness()
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        read = nursery.stdout.readline
        for _ in range(30):
            nursery.stdin.write("go\n")
            live_and_die(read, witness, choice.randint(1, 200))
            found = {record.cid for record in records(path)}
            assert witness.kept <= found
            assert not witness.gone & found
            assert secrets_of(path) == found
        nursery.stdin.close()
    assert len(witness.gone) > 100


def secrets_of(path: Path) -> set[str]:
    """Name those whose secrets can be found in any file."""
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    return {cid.decode() for cid in re.findall(rb"canary ([0-9.]+);", content)}


def live_and_die(read: Callable[[], str], witness: Witness, lines: int) -> None:
    pid, heard = 0, 0
    while (line := read()) != "dead -\n":
        what, cid = line.split()
        if what == "born":
            pid = int(cid)
        else:
            witness.hear(what, cid)
            heard += 1
        if pid and heard == lines:
            os.kill(pid, 9)
