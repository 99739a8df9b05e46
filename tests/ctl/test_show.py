# SPDX-License-Identifier: LGPL-2.1-or-later
import json
import time
from collections.abc import Iterator

import pytest

from storaged_conn.ctl import show
from storaged_conn.ctl.monitor import Difference, Presence
from storaged_conn.ctl.screen import Screen

GOLD: show.Properties = {
    "ConnectionId": "gold",
    "Uri": "file:///srv/gold",
    "Managed": True,
    "State": "waiting",
    "StateReason": "not-found",
    "StateSince": 1_000_000_000_000_000,
    "LastErrorMessage": "/srv/gold is not there; make it",
    "ConnectionInfo": {},
    "MountPoint": "",
    "SharedWith": [],
    "NextAttempt": 0,
    "Owner": 0,
}
FOUND: show.Properties = {
    **GOLD,
    "ConnectionId": "unmanaged/mount-34",
    "Managed": False,
    "State": "connected",
    "StateReason": "",
    "LastErrorMessage": "",
    "ConnectionInfo": {"fstype": "ext4", "readOnly": True},
    "MountPoint": "/mnt/x",
    "SharedWith": ["a, b", "c\n"],
    "Owner": 2**32 - 1,
}
PLAIN = Screen()
COLOUR = Screen(colour=True)


@pytest.fixture(autouse=True)
def in_india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def without(properties: show.Properties, **others: object) -> show.Properties:
    return {**properties, **others}


def test_managed_and_unmanaged_connections_are_lines_of_one_table() -> None:
    header, gold, found = show.connections([GOLD, FOUND], PLAIN).splitlines()
    assert header.split() == ["ID", "MANAGED", "STATE", "URI", "MOUNT", "REASON"]
    assert gold.split(maxsplit=5) == [
        "gold", "yes", "waiting", "file:///srv/gold", "-",
        "not-found: /srv/gold is not there; make it",
    ]  # fmt: skip
    assert found.split() == [
        "unmanaged/mount-34", "no", "connected", "file:///srv/gold", "/mnt/x", "-",
    ]  # fmt: skip


def test_eighty_columns_keep_usual_ids_and_states_whole() -> None:
    lines = show.connections([GOLD, FOUND], Screen(80)).splitlines()
    assert max(map(len, lines)) <= 80
    assert "unmanaged/mount-34  no       connected  file:" in lines[2]
    assert lines[1].endswith("…")


@pytest.mark.parametrize(("state", "code"), [("connected", 32), ("waiting", 33), ("failed", 31)])
def test_states_have_colours(state: str, code: int) -> None:
    shown = show.connections([without(GOLD, State=state)], COLOUR)
    assert f"\x1b[{code}m{state}\x1b[m" in shown


def test_a_state_that_is_not_known_is_shown_as_it_is() -> None:
    assert " pondering " in show.connections([without(GOLD, State="pondering")], COLOUR)


def test_details_have_all_properties_aligned() -> None:
    assert show.details(FOUND, PLAIN, 1_000_000_000.0 + 7300).splitlines() == [
        "ConnectionId      unmanaged/mount-34",
        "Uri               file:///srv/gold",
        "Managed           no",
        "State             connected",
        "StateReason       -",
        "StateSince        2001-09-09 07:16:40 +0530 (2 h ago)",
        "LastErrorMessage  -",
        "ConnectionInfo    fstype: ext4",
        "                  readOnly: yes",
        "MountPoint        /mnt/x",
        "SharedWith        a, b",
        r"                  c\n",
        "NextAttempt       -",
        "Owner             -",
    ]


def test_details_paint_the_state_and_nothing_that_looks_like_it() -> None:
    shown = show.details(without(FOUND, MountPoint="connected"), COLOUR, 0.0)
    assert shown.count("\x1b[32mconnected\x1b[m") == 1


def test_the_next_attempt_is_ahead() -> None:
    assert show.moment(1_000_000_090_000_000, 1_000_000_000.0).endswith("(in 1 min)")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (200_000, "2 d")],
)
def test_lengths_of_time_have_one_unit(seconds: float, shown: str) -> None:
    assert show.span(seconds) == shown


def test_the_state_line_says_why() -> None:
    line = "gold: waiting (not-found: /srv/gold is not there; make it)"
    assert show.state_line(GOLD, PLAIN) == line
    assert show.state_line(GOLD, PLAIN, why=False) == "gold: waiting"
    assert (
        show.state_line({"ConnectionId": "a\n", "State": "connected"}, PLAIN) == r"a\n: connected"
    )


def test_offers_are_a_line_each_with_the_uri_first() -> None:
    found: list[show.Properties] = [
        {"uri": "nfs://a/b"},
        {"clients": ["*", "c"], "uri": "nfs://a/c"},
    ]
    assert show.offers(found).splitlines() == ["nfs://a/b", "nfs://a/c  clients: *, c"]


@pytest.mark.parametrize(
    ("presence", "told"),
    [
        (Presence(running=True, first=True), "service running"),
        (Presence(running=False, first=True), "service not running"),
        (Presence(running=False), "service gone"),
        (Presence(running=True), "service back"),
    ],
)
def test_the_service_comes_and_goes(presence: Presence, told: str) -> None:
    line = show.event_line(presence, 1_000_000_000.0625, PLAIN)
    assert line == f"2001-09-09 07:16:40.062  {told}"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (None, GOLD, "added: waiting file:///srv/gold"),
        (GOLD, None, "removed"),
        (GOLD, without(GOLD, State="failed"), "State: waiting → failed (not-found)"),
        (
            GOLD,
            without(GOLD, State="connected", StateReason="", LastErrorMessage="", StateSince=1),
            "State: waiting → connected",
        ),
        (
            without(GOLD, State="connected", LastErrorMessage=""),
            GOLD,
            "State: connected → waiting (not-found); /srv/gold is not there; make it",
        ),
        (
            without(GOLD, LastErrorMessage=""),
            without(GOLD, StateReason="busy"),
            "/srv/gold is not there; make it; StateReason: not-found → busy",
        ),
        (
            GOLD,
            without(GOLD, MountPoint="/x\x1b", SharedWith=["s"]),
            r"MountPoint: - → /x\x1b; SharedWith: - → s",
        ),
    ],
)
def test_a_change_is_a_line(
    before: dict[str, object] | None, after: dict[str, object] | None, told: str
) -> None:
    line = show.event_line(Difference("gold", before, after), 0.0, PLAIN)
    assert line == f"1970-01-01 05:30:00.000  gold  {told}"


def test_a_change_that_is_only_noise_is_no_line() -> None:
    after = {**GOLD, "NextAttempt": 5, "StateSince": 6, "ConnectionInfo": {"a": 1}}
    assert show.event_line(Difference("gold", dict(GOLD), after), 0.0, PLAIN) == ""


def test_an_id_cannot_forge_a_line() -> None:
    line = show.event_line(Difference("x\ny\x1b[2K", {}, None), 0.0, PLAIN)
    assert line.endswith(r"  x\ny\x1b[2K  removed")


def test_programs_get_what_differs_before_and_after() -> None:
    after = {**GOLD, "State": "connected", "NextAttempt": 7}
    document = show.event_document(Difference("gold", dict(GOLD), after), 1.5)
    assert json.loads(json.dumps(document)) == {
        "time": 1_500_000,
        "event": "changed",
        "ConnectionId": "gold",
        "before": {"State": "waiting", "NextAttempt": 0},
        "after": {"State": "connected", "NextAttempt": 7},
    }


def test_programs_get_all_of_what_came_or_went() -> None:
    added = show.event_document(Difference("gold", None, dict(GOLD)), 0.0)
    removed = show.event_document(Difference("gold", dict(GOLD), None), 0.0)
    assert (added["event"], added["before"], added["after"]) == ("added", {}, GOLD)
    assert (removed["event"], removed["before"], removed["after"]) == ("removed", GOLD, {})
    gone = show.event_document(Presence(running=False), 0.0)
    assert gone == {"time": 0, "event": "service", "running": False}
