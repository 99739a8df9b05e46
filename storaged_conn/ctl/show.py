# SPDX-License-Identifier: LGPL-2.1-or-later
"""How connections and their changes look to a person. Pure: properties in, text out."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

from storaged_conn.ctl.monitor import Difference, Event, Presence
from storaged_conn.ctl.screen import (
    BOLD,
    GAP,
    GREEN,
    RED,
    YELLOW,
    Cell,
    Column,
    Screen,
    escape,
    table,
)

Properties = Mapping[str, object]

COLUMNS: Final = (
    Column("ID", 20),
    Column("MANAGED", 7),
    Column("STATE", 12),
    Column("URI", 14),
    Column("MOUNT", 8),
    Column("REASON", 9),
)
"""The floors fill 80 places, so that usual ids and every state are whole there."""

NOTHING: Final = "-"

COLOURS: Final = {
    "connected": GREEN,
    "waiting": YELLOW,
    "connecting": YELLOW,
    "disconnecting": YELLOW,
    "unresponsive": RED,
    "failed": RED,
}

TIMES: Final = frozenset({"StateSince", "NextAttempt"})
"""The properties that are microseconds of real time, 0 for none."""

NOBODY: Final = 2**32 - 1
"""The Owner of what nobody manages."""

NOISE: Final = frozenset(
    {
        "Attempts",
        "Connected",
        "ConnectionInfo",
        "LastError",
        "LastErrorName",
        "NextAttempt",
        "Reconnects",
        "StateSince",
    }
)
"""What a person need not see change: other properties say the same, or it is detail."""

MICROSECONDS: Final = 1_000_000
_SPANS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def connections(found: Iterable[Properties], screen: Screen) -> str:
    """Show many, a line each."""
    return table(COLUMNS, [_row(one) for one in found], screen)


def _row(one: Properties) -> list[Cell]:
    state = text(one, "State")
    return [
        Cell(text(one, "ConnectionId")),
        Cell("yes" if one.get("Managed") else "no"),
        Cell(state, COLOURS.get(state, "")),
        Cell(text(one, "Uri")),
        Cell(text(one, "MountPoint") or NOTHING),
        Cell(reason(one) or NOTHING),
    ]


def details(one: Properties, screen: Screen, now: float) -> str:
    """Show all about one: a line for each property, more where it has several values.

    Args:
        one: its properties.
        screen: what it is for.
        now: seconds of real time.
    """
    widest = max(map(len, one), default=0)
    lines = []
    for name, value in one.items():
        for place, shown in enumerate(_values(name, value, now)):
            title = "" if place else name
            text_of_value = _painted(shown, screen) if name == "State" else escape(shown)
            padding = " " * (widest - len(title)) + GAP
            lines.append(screen.paint(title, BOLD) + padding + text_of_value)
    return "\n".join(lines)


def _values(name: str, value: object, now: float) -> list[str]:
    match value:
        case int() if name in TIMES:
            return [moment(value, now) if value else NOTHING]
        case int() if name == "Owner" and value == NOBODY:
            return [NOTHING]
        case list() if value:
            return [words(item) for item in value]
        case dict() if value:
            return [f"{key}: {words(item)}" for key, item in value.items()]
        case _:
            return [words(value)]


def words(value: object) -> str:
    """Write a value for a person, without escapes."""
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(words, value)) or NOTHING
        case dict():
            return ", ".join(f"{key}: {words(item)}" for key, item in value.items()) or NOTHING
        case _:
            return str(value) or NOTHING


def offers(found: Iterable[Properties]) -> str:
    """Show what a server offers, a line each: the URI, then what else there is to know."""
    lines = []
    for one in found:
        rest = words({key: value for key, value in one.items() if key != "uri"})
        lines.append(escape(text(one, "uri") + (f"{GAP}{rest}" if len(one) > 1 else "")))
    return "\n".join(lines)


def state_line(one: Properties, screen: Screen, *, why: bool = True) -> str:
    """Show the state of one, after its id.

    Args:
        one: its properties.
        screen: what it is for.
        why: say the reason too.
    """
    because = reason(one) if why else ""
    shown = f"{escape(text(one, 'ConnectionId'))}: {_painted(text(one, 'State'), screen)}"
    return f"{shown} ({escape(because)})" if because else shown


def reason(one: Properties) -> str:
    """Say why a connection is in its state, empty where there is nothing to say."""
    return ": ".join(filter(None, (text(one, "StateReason"), text(one, "LastErrorMessage"))))


def moment(microseconds: int, now: float) -> str:
    """Write a time as the local one, and how far away it is.

    Args:
        microseconds: of real time, as on D-Bus.
        now: seconds of real time.
    """
    seconds = microseconds / MICROSECONDS
    local = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))
    away = now - seconds
    return f"{local} ({span(away)} ago)" if away >= 0 else f"{local} (in {span(-away)})"


def span(seconds: float) -> str:
    """Write a length of time in its largest whole unit."""
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return "0 s"


def event_line(event: Event, now: float, screen: Screen) -> str:
    """Write an event for a person, empty where it is only noise.

    Args:
        event: what happened.
        now: seconds of real time.
        screen: what it is for.
    """
    told = _presence(event) if isinstance(event, Presence) else _difference(event, screen)
    return f"{_stamp(now)}{GAP}{told}" if told else ""


def event_document(event: Event, now: float) -> dict[str, object]:
    """Write an event for a program.

    Returns:
        time (microseconds of real time) and event: `service` with running, else `added`, `removed`
        or `changed` with ConnectionId, and those properties that differ, before and after.
    """
    document: dict[str, object] = {"time": round(now * MICROSECONDS)}
    if isinstance(event, Presence):
        return document | {"event": "service", "running": event.running}
    before, after = event.before or {}, event.after or {}
    return document | {
        "event": _kind(event),
        "ConnectionId": event.cid,
        "before": {name: before[name] for name in event.changed if name in before},
        "after": {name: after[name] for name in event.changed if name in after},
    }


def _kind(event: Difference) -> str:
    if event.before is None:
        return "added"
    return "removed" if event.after is None else "changed"


def _presence(event: Presence) -> str:
    if event.first:
        return "service running" if event.running else "service not running"
    return "service back" if event.running else "service gone"


def _difference(event: Difference, screen: Screen) -> str:
    if event.after is None:
        told = ["removed"]
    elif event.before is None:
        shown = _painted(text(event.after, "State"), screen)
        told = [f"added: {shown} {escape(text(event.after, 'Uri'))}"]
    else:
        names = sorted(event.changed, key=lambda name: name != "State")
        told = [_change(name, event.before, event.after, screen) for name in names]
    shown = "; ".join(filter(None, told))
    return f"{escape(event.cid)}{GAP}{shown}" if shown else ""


def _change(name: str, before: Properties, after: Properties, screen: Screen) -> str:
    old, new = words(before.get(name, "")), words(after.get(name, ""))
    match name:
        case "State":
            why = text(after, "StateReason")
            shown = f"State: {escape(old)} → {_painted(new, screen)}"
            return f"{shown} ({escape(why)})" if why else shown
        case "StateReason" if before.get("State") != after.get("State"):
            return ""  # it is told with the state
        case "LastErrorMessage":
            return escape(new) if new != NOTHING else ""
        case _ if name in NOISE:
            return ""
        case _:
            return escape(f"{name}: {old} → {new}")


def _painted(state: str, screen: Screen) -> str:
    return screen.paint(escape(state), COLOURS.get(state, ""))


def _stamp(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    local = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(whole))
    return f"{local}.{milliseconds:03}"


def text(one: Properties, name: str) -> str:
    """Give a property that is text, empty where it is missing."""
    value = one.get(name, "")
    return value if isinstance(value, str) else ""
