# SPDX-License-Identifier: LGPL-2.1-or-later
"""A secret with a mark that is looked for wherever the real service could let it show."""

import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from storaged_conn.bus.wire import Field, Kind, Variant
from storaged_conn.core.secret import MAX_SECRET_BYTES, Secret
from storaged_conn.front.dispatch import MAX_CALL
from storaged_conn.names import CONNECTION, INTROSPECTABLE, PROPERTIES
from storaged_conn.store import Store
from tests.caller import MAX_MESSAGE, Caller, calling, refused
from tests.canary import Canary, Tap, processes
from tests.live import Daemon, private_bus

pytestmark = pytest.mark.bus

TALKATIVE: Final = {"PYTHONASYNCIODEBUG": "1", "PYTHONFAULTHANDLER": "1"}
"""Makes the service say as much as it can. Source: docs.python.org/3/using/cmdline.html."""

TELLING: Final = {"Manage", "Validate", "Discover"}
"""The calls in which the secret is sent."""


class Stage(NamedTuple):
    """The service with everything that it could tell a secret to."""

    directory: Path
    daemon: Daemon
    caller: Caller
    tap: Tap

    async def manage(self, cid: str, uri: str = "simulated:a", **options: object) -> None:
        named = {name.replace("_", "-"): value for name, value in options.items()}
        await self.caller.call("Manage", "ssa{sv}", uri, cid, named)

    def files(self) -> dict[str, bytes]:
        """Read all files of the service, and any other that it could have made."""
        found = (file for file in self.directory.rglob("*") if file.is_file())
        return {file.relative_to(self.directory).as_posix(): file.read_bytes() for file in found}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    env = TALKATIVE | {"TMPDIR": str(scratch), "SQLITE_TMPDIR": str(scratch)}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    dumped = ("prlimit", "--core=unlimited", "env", f"--chdir={tmp_path}")
    args = (tmp_path / "state", tmp_path / "run", "--enable-simulated", "--log-level", "debug")
    with private_bus() as address:
        tap = await Tap.open(address, max_message=MAX_MESSAGE)
        assert isinstance(tap, Tap)
        try:
            await tap.monitor()
            daemon = Daemon(address, *args, env=env, prefix=dumped)
            async with calling(address) as caller, daemon:
                yield Stage(tmp_path, daemon, caller, tap)
        finally:
            tap.close()


@pytest.fixture
def canary() -> Canary:
    return Canary()


def check_processes(canary: Canary) -> None:
    assert not [place for place, content in processes() if canary.is_in(content)]


def check_files(stage: Stage, canary: Canary) -> None:
    """The mark is in the file of the records, which only its owner can read, and in no other."""
    found = {name for name, content in stage.files().items() if canary.is_in(content)}
    assert found
    assert found <= {"state/connections.db", "state/connections.db-wal"}
    for name in found:
        assert stat.S_IMODE((stage.directory / name).stat().st_mode) == 0o600


def check_bus(stage: Stage, canary: Canary) -> None:
    """The mark is in the calls that gave it, and in no other message."""
    found = [one for one, raw in stage.tap.seen if canary.is_in(raw)]
    assert {one.text(Field.MEMBER) for one in found} == TELLING
    assert {one.kind for one in found} == {Kind.CALL}


def check_log(stage: Stage, canary: Canary) -> None:
    log = stage.daemon.log
    assert "held by" in log
    assert not canary.is_in(log.encode()), log


async def test_a_secret_shows_nowhere(stage: Stage, canary: Canary) -> None:
    await stage.manage("good", password=canary.secret)
    await stage.caller.until("good", State="connected")
    await stage.manage("other", password=Variant("ay", b"another"))
    failing = {"fail_first": Variant("x", 9), "fail_with": Variant("s", "AuthenticationFailed")}
    await stage.manage("bad", "simulated:b", password=canary.secret, **failing)
    await stage.caller.until("bad", State="failed")
    await ask_for_everything(stage, canary)
    await be_refused(stage, canary)
    check_processes(canary)
    check_files(stage, canary)

    await stage.daemon.stop()
    check_files(stage, canary)
    await stage.daemon.start()
    await stage.caller.until("good", State="connected")
    await stage.daemon.kill()
    await stage.daemon.start()
    await stage.caller.until("bad", State="failed")
    check_processes(canary)
    check_files(stage, canary)

    os.kill(stage.daemon.pid, signal.SIGABRT)  # faulthandler writes where every thread is
    await stage.daemon.wait()
    assert "most recent call first" in stage.daemon.log
    check_files(stage, canary)  # among them would be a core dump
    await stage.daemon.start()
    await stage.caller.until("bad", State="failed")
    await see_the_end(stage)
    check_bus(stage, canary)
    check_log(stage, canary)


async def ask_for_everything(stage: Stage, canary: Canary) -> None:
    """Call all that there is to read, and what takes secrets without keeping them."""
    caller, given = stage.caller, {"password": canary.secret}
    await caller.listed()
    await caller.objects()
    await caller.call("Introspect", interface=INTROSPECTABLE)
    await caller.call("Validate", "sa{sv}", "simulated:c", given)
    with refused("NotSupported"):
        await caller.call("Discover", "sa{sv}", "simulated:c", given)
    for cid in ("good", "bad"):
        await caller.properties(cid)
        await caller.reconnect(cid)
    assert await caller.wait_for("good", "connected") == "connected"
    for interface in (CONNECTION, ""):
        where = {"path": await path(stage, "bad"), "interface": PROPERTIES}
        await caller.call("GetAll", "s", interface, **where)


async def path(stage: Stage, cid: str) -> str:
    (found,) = await stage.caller.call("GetConnection", "s", cid)
    return str(found)


async def be_refused(stage: Stage, canary: Canary) -> None:
    """Give the secret in every wrong way."""
    text, long = canary.text, canary.text.encode() * MAX_SECRET_BYTES
    wrong: dict[str, list[dict[str, object]]] = {
        "simulated:x": [
            {"password": Variant("s", text)},
            {"password": Variant("as", [text])},
            {"password": Variant("v", Variant("s", text))},
            {"password": Variant("ay", long[: MAX_SECRET_BYTES + 1])},
            {"passwort": canary.secret},
            {"passwort": Variant("s", text)},
            {f"password={text}": Variant("x", 1)},
            {"latency-ms": Variant("s", text)},
            {"fail-with": Variant("s", text)},
            {"lifetime": Variant("s", text)},
        ],
        f"simulated://me:{text}@host:1/x": [{}],
    }
    for uri, options in wrong.items():
        for one in options:
            with refused("InvalidArgument"):
                await stage.caller.call("Manage", "ssa{sv}", uri, "x", one)
            with refused("InvalidArgument"):
                await stage.caller.call("Validate", "sa{sv}", uri, one)
    with refused("AlreadyExists"):
        await stage.manage("good", password=canary.secret)
    with refused("LimitExceeded"):
        await stage.manage("x", password=Variant("ay", long[: MAX_CALL + 1]))


async def see_the_end(stage: Stage) -> None:
    with refused("NotFound"):
        await stage.caller.unmanage("the end")
    await stage.tap.sees(b"the end")


async def test_after_unmanage_no_file_has_it(stage: Stage, canary: Canary) -> None:
    for number in range(30):
        await stage.manage(f"before {number}", f"simulated:{number}", password=canary.secret)
    check_files(stage, canary)
    for number in range(30):
        await stage.caller.unmanage(f"before {number}")
        assert any(map(canary.is_in, stage.files().values())) == (number < 29)
    await stage.manage("runtime", password=canary.secret, lifetime=Variant("s", "caller"))
    check_files(stage, canary)
    await stage.caller.unmanage("runtime")
    assert not any(map(canary.is_in, stage.files().values()))
    await stage.daemon.stop()
    assert not any(map(canary.is_in, stage.files().values()))


async def test_the_order_that_decides_which_secrets_count_survives(stage: Stage) -> None:
    for cid in ("c", "a", "b"):
        await stage.manage(cid, password=Variant("ay", cid.encode()))
    assert (await stage.caller.properties("a"))["SharedWith"] == ["b", "c"]
    await stage.daemon.stop()
    store = Store(stage.directory / "state" / "connections.db")
    found = [(one.cid, one.options["password"]) for one in store.open()]
    store.close()
    assert found == [(cid, Secret(cid.encode())) for cid in "cab"]
