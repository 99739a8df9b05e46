# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each command asks, and what it prints."""

import asyncio
import gc
import io
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TextIO

from storaged_conn.ctl import options, secret, show
from storaged_conn.ctl.arguments import Arguments
from storaged_conn.ctl.client import Client, Failure, Properties, open_client
from storaged_conn.ctl.monitor import Event, Monitor
from storaged_conn.ctl.screen import Screen, escape
from storaged_conn.ctl.waiting import Newcomer
from storaged_conn.ctl.watch import EVERYTHING, Signals
from storaged_conn.errors import ERROR_PREFIX, TimedOutError

DONE: Final = 0
REFUSED: Final = 1


def run(arguments: Arguments) -> int:
    """Run a command; gives the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where the locale has no letter for something, its escape is better than a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return asyncio.run(_run(arguments))
    except Failure as failure:
        print(_complaint(failure, arguments), file=sys.stderr)
        return failure.status


async def _run(arguments: Arguments) -> int:
    async with open_client(arguments.bus) as client:
        return await COMMANDS[arguments.command](client, arguments)


def _complaint(failure: Failure, arguments: Arguments) -> str:
    if arguments.json:
        return json.dumps({"error": failure.name, "message": str(failure)})
    return f"storaged-connctl: {escape(str(failure))}"


async def _list(client: Client, arguments: Arguments) -> int:
    gc.disable()  # all that is read stays to the end: of 2.4 s for 10 000, 1 s went into looking
    found = sorted((await client.objects()).values(), key=_managed_first)
    if not found and not arguments.json:
        print("no connections; 'storaged-connctl manage' makes one", file=sys.stderr)
    _print(arguments, found, lambda screen: show.connections(found, screen))
    return DONE


def _managed_first(one: Properties) -> tuple[bool, str]:
    return not one.get("Managed"), show.text(one, "ConnectionId")


async def _show(client: Client, arguments: Arguments) -> int:
    one = await client.properties(await client.path(arguments.cid))
    _print(arguments, one, lambda screen: show.details(one, screen, time.time()))
    return DONE


async def _manage(client: Client, arguments: Arguments) -> int:
    given = await _options(client, arguments)
    signals = Signals(client)
    if arguments.wait:  # before, so that no change is missed
        await signals.follow(EVERYTHING)
    path = await client.manage(arguments.uri, arguments.cid, given)
    if not arguments.wait:
        _print_state(arguments, await client.properties(path))
        return DONE
    one = await Newcomer(client, signals, path).settle(arguments.wait)
    _print(arguments, one, lambda screen: show.state_line(one, screen, why=False))
    if show.text(one, "State") != "connected":
        raise _not_connected(one, arguments.wait)
    return DONE


def _not_connected(one: Properties, seconds: float) -> Failure:
    cid, state, why = show.text(one, "ConnectionId"), show.text(one, "State"), show.reason(one)
    because = f" ({why})" if why else ""
    if state == "failed":
        text = f"'{cid}' has failed{because}; it is tried again when something changes"
        return Failure(text, show.text(one, "LastErrorName"))
    text = f"'{cid}' is {state} after {seconds:g} s{because}; the service goes on trying"
    return Failure(text, ERROR_PREFIX + TimedOutError.name)


async def _unmanage(client: Client, arguments: Arguments) -> int:
    await client.unmanage(arguments.cid)
    document = {"ConnectionId": arguments.cid, "Managed": False}
    _print(arguments, document, lambda _: f"{escape(arguments.cid)}: no longer managed")
    return DONE


async def _reconnect(client: Client, arguments: Arguments) -> int:
    path = await client.path(arguments.cid)
    await client.reconnect(path)
    _print_state(arguments, await client.properties(path))
    return DONE


async def _wait(client: Client, arguments: Arguments) -> int:
    path = await client.path(arguments.cid)
    reached = await client.wait_for(path, arguments.state, arguments.timeout)
    _print_state(arguments, {"ConnectionId": arguments.cid, "State": reached})
    return DONE


async def _validate(client: Client, arguments: Arguments) -> int:
    result = await client.validate(arguments.uri, await _options(client, arguments))
    uri = show.text(result, "uri")
    if not arguments.json and not result.get("ok"):
        why = f"{show.text(result, 'reason')}: {show.text(result, 'message')}"
        raise Failure(f"{uri} would not connect ({why})", show.text(result, "error"))
    _print(arguments, result, lambda _: f"{escape(uri)}: would connect")
    return DONE if result.get("ok") else REFUSED


async def _discover(client: Client, arguments: Arguments) -> int:
    found = await client.discover(arguments.uri, await _options(client, arguments))
    _print(arguments, found, lambda _: show.offers(found))
    return DONE


async def _monitor(client: Client, arguments: Arguments) -> int:
    screen = Screen.of(sys.stdout)
    _end_quietly(sys.stdout)

    def report(event: Event) -> None:
        now = time.time()
        if arguments.json:
            print(json.dumps(show.event_document(event, now)), flush=True)
        elif line := show.event_line(event, now, screen):
            print(line, flush=True)

    await Monitor(client, report).run()
    return DONE


def _end_quietly(output: TextIO) -> None:
    # Each line is flushed, and there is nothing to undo; this works even in a write that blocks.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(DONE))
    # A pipe whose reader is gone would be noticed only at the next change.
    if stat.S_ISFIFO(os.fstat(output.fileno()).st_mode):
        asyncio.get_running_loop().add_reader(output.fileno(), os._exit, DONE)


async def _options(client: Client, arguments: Arguments) -> dict[str, tuple[str, options.Value]]:
    if not arguments.options and not arguments.secrets:
        return {}
    scheme = arguments.uri.partition(":")[0].lower()
    given = options.typed(arguments.options, await client.known_options(scheme))
    secrets = secret.read(arguments.secrets)  # may wait for a person; nothing else is to be done
    for name in given.keys() & secrets.keys():
        raise options.wrong(f"option {name} is given by -o and by --secret; give it once")
    return given | secrets


def _print_state(arguments: Arguments, one: Properties) -> None:
    _print(arguments, one, lambda screen: show.state_line(one, screen))


def _print(arguments: Arguments, document: object, human: Callable[[Screen], str]) -> None:
    print(json.dumps(document, indent=2) if arguments.json else human(Screen.of(sys.stdout)))


COMMANDS: Final[Mapping[str, Callable[[Client, Arguments], Awaitable[int]]]] = {
    "list": _list,
    "show": _show,
    "manage": _manage,
    "unmanage": _unmanage,
    "reconnect": _reconnect,
    "wait": _wait,
    "monitor": _monitor,
    "validate": _validate,
    "discover": _discover,
}
