# SPDX-License-Identifier: LGPL-2.1-or-later
"""A systemd for tests on a private bus: what bus/systemd.py needs of PID 1, with real mounts.

Units live as PID 1's do with CollectMode=inactive-or-failed; `failed` has names of others.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from storaged_conn.bus import wire
from storaged_conn.bus.connection import Bus, CallError
from storaged_conn.bus.systemd import MANAGER, PATH, SYSTEMD
from storaged_conn.bus.wire import Field, Message
from storaged_conn.system.run import ENVIRONMENT
from tests.bus.wires import connected

JOB: Final = f"{PATH}/job/"
DO_NOT_QUEUE: Final = 4


class FakeSystemd:
    """PID 1's Manager, as far as mounts need it.

    Attributes:
        calls: (member, unit) of all that was asked for.
        made: the properties of each unit that was made.
        failed: names that must be reset before they are used again.
        refusals: the error that a name is answered with.
        silent: units whose jobs never end, until they are stopped.
        asked: set with every call.
    """

    def __init__(self, bus: Bus) -> None:
        self.calls: list[tuple[str, str]] = []
        self.made: list[dict[str, Any]] = []
        self.failed: set[str] = set()
        self.refusals: dict[str, str] = {}
        self.silent: set[str] = set()
        self.asked = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self._bus = bus
        self._units: dict[str, dict[str, Any]] = {}
        self._jobs = 0
        self._subscribed: set[str] = set()
        bus.on_call = self._serve

    def _serve(self, call: Message) -> None:
        member, body = call.text(Field.MEMBER), call.arguments()
        self.calls.append((member, body[0] if body else call.text(Field.SENDER)))
        self.asked.set()
        try:
            job = getattr(self, member)(*(body or [call.text(Field.SENDER)]))
        except CallError as error:
            self._bus.error(call, error.name, str(error))
            return
        signature = "o" if job else ""
        self._bus.reply(call, signature, wire.marshal(signature, [job] if job else []))

    def Subscribe(self, sender: str) -> None:
        if sender in self._subscribed:
            raise CallError(f"{SYSTEMD}.AlreadySubscribed", "Client is already subscribed.")
        self._subscribed.add(sender)

    def ResetFailedUnit(self, unit: str) -> None:
        if unit not in self.failed:
            raise CallError(f"{SYSTEMD}.NoSuchUnit", f"Unit {unit} not loaded.")
        self.failed.discard(unit)

    def StartTransientUnit(self, unit: str, mode: str, properties: Any, _: Any) -> str:
        assert mode == "ignore-dependencies"
        if unit in self.refusals:
            raise CallError(self.refusals[unit], "refused")
        if unit in self.failed | self._units.keys():
            raise CallError(f"{SYSTEMD}.UnitExists", f"Unit {unit} was already loaded.")
        found = {name: value.value for name, value in properties}
        self.made.append(found)
        self._units[unit] = found
        return self._begin(unit, _command(unit, found), starts=unit.endswith(".mount"))

    def StopUnit(self, unit: str, mode: str) -> str:
        assert mode == "ignore-dependencies"
        if unit not in self._units:
            raise CallError(f"{SYSTEMD}.NoSuchUnit", f"Unit {unit} not loaded.")
        if unit in self.silent:
            return self._call_off(unit)
        return self._begin(unit, ["umount", _where(unit), "-c"], starts=False)

    def _call_off(self, unit: str) -> str:
        self.silent.discard(unit)
        self._jobs += 1
        job = f"{JOB}{self._jobs}"
        del self._units[unit]
        asyncio.get_running_loop().call_soon(self.tell, job, unit, "done")
        return job

    def _begin(self, unit: str, argv: list[str], *, starts: bool) -> str:
        self._jobs += 1
        job = f"{JOB}{self._jobs}"
        if unit not in self.silent:
            task = asyncio.create_task(self._run(job, unit, argv, starts=starts))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return job

    async def _run(self, job: str, unit: str, argv: list[str], *, starts: bool) -> None:
        words = self._units[unit].get("StandardErrorFile", os.devnull)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*argv, stderr=pipe, env=ENVIRONMENT)
        _, said = await process.communicate()
        _write(words, said)
        if starts == bool(process.returncode):
            del self._units[unit]
        self.tell(job, unit, "failed" if process.returncode else "done")

    def tell(self, job: str, unit: str, result: str) -> None:
        """Say that a job has ended, to those who want to know."""
        if self._subscribed:
            body = [int(job.removeprefix(JOB)), job, unit, result]
            self._bus.signal(PATH, MANAGER, "JobRemoved", "uoss", wire.marshal("uoss", body))

    def lose(self, unit: str) -> None:
        """Learn that somebody else has unmounted what a unit stands for."""
        del self._units[unit]


def _command(unit: str, found: dict[str, Any]) -> list[str]:
    if unit.endswith(".service"):
        return list(found["ExecStart"][0][1])
    where = _where(unit)
    assert os.path.realpath(where) == where, "PID 1 wants a path without links"
    return ["mount", found["What"], where, "-t", found["Type"], "-o", found["Options"]]


def _write(words: str, said: bytes) -> None:
    Path(words).write_bytes(said)


def _where(unit: str) -> str:
    name = unit.removesuffix(".mount").replace("-", "/").encode()
    return f"/{name.decode('unicode_escape').encode('latin-1').decode()}"


@asynccontextmanager
async def fake_systemd(address: str) -> AsyncIterator[FakeSystemd]:
    """Be systemd on a bus."""
    async with connected(address) as bus:
        systemd = FakeSystemd(bus)
        await bus.ask("RequestName", "su", SYSTEMD, DO_NOT_QUEUE)
        yield systemd
        for task in systemd.tasks:
            task.cancel()
