# SPDX-License-Identifier: LGPL-2.1-or-later
"""How soon loss and return are noticed, beside monitors that poll, in a network of namespaces.

All times are taken outside of the service: a fault counts from before the system call that plays
it, a state from when a client has the signal, and an attempt from when its first packet leaves.
Needs root.
"""

import asyncio
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Final, NamedTuple

from tests.bench.table import Row, print_table
from tests.bench.tap import Tap
from tests.netns import CLIENT, INTERFACE, Network, Server, address, network
from tests.tape import Inside, behind

FLAPS: Final = 200
PORT: Final = 2049
URI: Final = f"simulated://{address()}:{PORT}/x"

RENEWED: Final = 10
"""Flaps after which the connection is managed anew: more in a row would use up what the service
allows flapping, which is measured elsewhere."""

ROUNDS: Final = 20
SILENCES: Final = 10
"""How often a server goes, and how often without a word, which takes 4 s each time."""

POLLED: Final = 3
MONITORS: Final = 10
INTERVAL: Final = 10.0
"""Flaps that last until all monitors have noticed, how many there are, and seconds between two
looks of one. Their law is INTERVAL / 2 in the mean, so a few flaps tell."""


class Stage(NamedTuple):
    """A network, its server, and the service with the connection `x`."""

    net: Network
    server: Server
    inside: Inside


async def main() -> None:
    """Measure and print."""
    if os.geteuid() != 0:
        print("\nnetwork: skipped, only root can make network namespaces")
        return
    async with _stage() as on:
        print_table(f"Own link down and up, {FLAPS} times", await _flap(on))
    async with _stage() as on:
        print_table(f"The same beside monitors that poll every {INTERVAL:.0f} s", await _poll(on))
    rows = []
    async with _stage() as on:
        rows += await _kill(on)
        rows += await _silence(on)
    async with _stage(cable=True) as on:
        rows += await _unplug(on)
    async with _stage() as on:
        rows += await _hear(on)
    print_table(f"A server that goes and comes back, {ROUNDS} times each", rows)


@asynccontextmanager
async def _stage(*, cable: bool = False) -> AsyncIterator[Stage]:
    with network(cable=cable) as net, tempfile.TemporaryDirectory(prefix="storaged-bench-") as name:
        async with (
            Server(net.servers[0], PORT) as server,
            behind(net, Path(name), "--log-level", "warning") as inside,
        ):
            await _manage(inside)
            yield Stage(net, server, inside)


async def _manage(inside: Inside) -> None:
    await inside.caller.manage(URI, "x")
    await inside.caller.until("x", State="connected")
    await _settle()


async def _settle() -> None:
    """Let the service rest, for longer than it holds signals back, at no fixed pace."""
    await asyncio.sleep(random.uniform(0.15, 0.25))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _with_99th(figure: str, values: list[float], goals: tuple[str, str] = ("", "")) -> list[Row]:
    """Give a figure's row, and one for its 99th percentile."""
    ms = [value * 1000 for value in values]
    last = quantiles(ms, n=100, method="inclusive")[-1]
    return [Row(figure, ms, "ms", goals[0]), Row("… 99th percentile", [last], "ms", goals[1])]


# the own link


async def _flap(on: Stage) -> list[Row]:
    lost: list[float] = []
    tried: list[float] = []
    back: list[float] = []
    with Tap(on.net.client) as tap:
        for number in range(FLAPS):
            if number and number % RENEWED == 0:
                await on.inside.caller.unmanage("x")
                await _manage(on.inside)
            began = await _link(on, up=False)
            lost.append(await on.inside.tape.says("x", began, Connected=False) - began)
            await _settle()
            began = await _link(on, up=True)
            tried.append(await tap.sees(began) - began)
            back.append(await on.inside.tape.says("x", began, Connected=True) - began)
            await _settle()
    return [
        *_with_99th("down until a client is told", lost, ("< 10 ms", "< 50 ms")),
        *_with_99th("up until the first attempt", tried, ("< 10 ms", "")),
        *_with_99th("up until connected", back),
    ]


async def _link(on: Stage, *, up: bool) -> float:
    """Set the client's interface; returns the time before that."""
    began = _now()
    await asyncio.to_thread(on.net.client.link, up=up)
    return began


async def _poll(on: Stage) -> list[Row]:
    """Play a few flaps that last until all have noticed."""
    program = str(Path(__file__).with_name("poller.py"))
    numbers = (str(PORT), str(INTERVAL), str(MONITORS))
    polling = await asyncio.create_subprocess_exec(
        *on.net.client.prefix, sys.executable, "-I", program, address(), *numbers,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert polling.stdout is not None
    figures: dict[tuple[bool, bool], list[float]] = {}
    try:
        await asyncio.sleep(INTERVAL)  # all have looked once
        for up in [False, True] * POLLED:
            await asyncio.sleep(random.uniform(0, INTERVAL / MONITORS))
            began = await _link(on, up=up)
            told = await on.inside.tape.says("x", began, Connected=up)
            figures.setdefault((up, False), []).append((told - began) * 1000)
            for _ in range(MONITORS):
                at, what = (await polling.stdout.readline()).split()
                assert what == (b"up" if up else b"down")
                figures.setdefault((up, True), []).append((float(at) - began) * 1000)
    finally:
        polling.kill()
        await polling.wait()
    return [
        Row("down, told by this service", figures[False, False], "ms"),
        Row("down, noticed by polling", figures[False, True], "ms"),
        Row("up, told by this service", figures[True, False], "ms"),
        Row("up, noticed by polling", figures[True, True], "ms"),
    ]


# the server


async def _kill(on: Stage) -> list[Row]:
    lost: list[float] = []
    back: list[float] = []
    for _ in range(ROUNDS):
        await asyncio.sleep(1 + random.random())  # sooner, it would be a server that only hangs up
        began = await on.server.kill()
        lost.append((await on.inside.tape.says("x", began, Connected=False) - began) * 1000)
        await asyncio.sleep(random.uniform(0.5, 1.5))
        began = await on.server.start()
        back.append(await on.inside.tape.says("x", began, Connected=True) - began)
    return [
        Row("process killed until told", lost, "ms", "< 20 ms"),
        Row("accepting until connected", back, "s", "< 1 s"),
    ]


async def _silence(on: Stage) -> list[Row]:
    lost, back = await _measure(on, SILENCES, on.net.drop, on.net.deliver)
    return [
        Row("all packets dropped until told", lost, "s", "< 4.5 s"),
        Row("delivered again until connected", back, "s", "< 1 s"),
    ]


async def _unplug(on: Stage) -> list[Row]:
    server = on.net.servers[0]
    down, up = partial(server.link, up=False), partial(server.link, up=True)
    _, back = await _measure(on, ROUNDS, down, up)
    return [Row("its link at our cable up until connected", _ms(back), "ms", "< 50 ms")]


async def _hear(on: Stage) -> list[Row]:
    """Have a server come up where nobody sees it, and say something then."""
    back: list[float] = []
    while len(back) < SILENCES:
        await asyncio.sleep(random.random())
        began = _now()
        on.net.servers[0].link(up=False)
        await on.inside.tape.says("x", began, Connected=False)
        # as after an outage of half a minute, see arp(7), base_reachable_time_ms
        on.net.client.run("ip", "neighbour", "flush", "dev", INTERFACE)
        await asyncio.sleep(5 * random.random())
        began = _now()
        on.net.servers[0].link(up=True)
        await _settle()  # until the switch forwards
        spoken = _now()
        on.net.servers[0].speak(CLIENT)
        told = await on.inside.tape.says("x", began, Connected=True)
        if told > spoken:  # or it was found by what the kernel sends once a second
            back.append(told - spoken)
    return [Row("heard of as a neighbour until connected", _ms(back), "ms", "< 50 ms")]


async def _measure(
    on: Stage, rounds: int, fault: Callable[[], None], repair: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Play a fault and its repair again and again.

    Returns:
        Seconds from before each of both until a client was told.
    """
    lost: list[float] = []
    back: list[float] = []
    for _ in range(rounds):
        await asyncio.sleep(random.random())  # the keepalive and the attempts go by the second
        began = _now()
        await asyncio.to_thread(fault)
        lost.append(await on.inside.tape.says("x", began, Connected=False) - began)
        await asyncio.sleep(random.random())
        await _settle()
        began = _now()
        await asyncio.to_thread(repair)
        back.append(await on.inside.tape.says("x", began, Connected=True) - began)
        await _settle()
    return lost, back


def _ms(seconds: list[float]) -> list[float]:
    return [value * 1000 for value in seconds]
