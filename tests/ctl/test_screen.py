# SPDX-License-Identifier: LGPL-2.1-or-later
import io
import subprocess

import pytest

from storaged_conn.ctl.screen import BOLD, Cell, Column, Screen, clip, escape, fit, table, width

COLUMNS = (Column("ID", 6), Column("STATE", 5), Column("WHY", 3))
ROWS = [
    [Cell("gold"), Cell("connected", "32"), Cell("-")],
    [Cell("a very long connection id"), Cell("waiting"), Cell("it is not there yet, wait for it")],
]


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_text_is_left_alone() -> None:
    assert escape("gold é 漢 -/.:'\"") == "gold é 漢 -/.:'\""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2Jx\x07", r"\x1b[2Jx\x07"),
        ("back\\slash", r"back\\slash"),
        ("\x9b31m", r"\u009b31m"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("no\u00a0break", r"no\u00a0break"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_bash_reads_an_escaped_text_back() -> None:
    text = "a\n\x1b\\é\u202e\U000e0041"
    argv = ["bash", "-c", f"printf %s $'{escape(text)}'"]
    got = subprocess.run(argv, capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True)
    assert got.stdout.decode() == text


def test_wide_and_combining_characters_take_their_places() -> None:
    assert [width(one) for one in ("abc", "é", "e\u0301", "漢字")] == [3, 1, 1, 4]


@pytest.mark.parametrize(
    ("text", "places", "shown"),
    [
        ("gold", 4, "gold"),
        ("golden", 4, "gol…"),
        ("漢字漢", 4, "漢…"),
        ("gold", 1, "…"),
        ("x", 0, ""),
    ],
)
def test_a_text_is_cut_with_an_ellipsis(text: str, places: int, shown: str) -> None:
    assert clip(text, places) == shown


def test_what_fits_is_not_shrunk() -> None:
    assert fit([10, 5, 8], [2, 2, 2], 23) == [10, 5, 8]


def test_the_column_that_is_most_above_its_floor_shrinks_first() -> None:
    assert fit([10, 5, 40], [10, 5, 4], 30) == [10, 5, 15]


def test_floors_give_way_only_when_all_are_reached() -> None:
    assert fit([30, 12, 20], [20, 12, 10], 43) == [20, 12, 11]
    assert fit([30, 12, 20], [20, 12, 10], 40) == [18, 12, 10]


def test_columns_can_shrink_to_nothing() -> None:
    assert fit([3, 4], [2, 2], -1) == [0, 0]


def test_a_file_gets_full_width_and_no_colour() -> None:
    lines = table(COLUMNS, ROWS, Screen.of(io.StringIO())).splitlines()
    assert lines == [
        "ID                         STATE      WHY",
        "gold                       connected  -",
        "a very long connection id  waiting    it is not there yet, wait for it",
    ]


@pytest.mark.parametrize("places", [1, 4, 5, 10, 20, 39, 40, 60, 68, 69, 70, 200])
def test_no_line_is_longer_than_the_screen(places: int) -> None:
    lines = table(COLUMNS, ROWS, Screen(places)).split("\n")
    assert max(map(width, lines)) <= places
    assert len(lines) == 3


def test_columns_stay_aligned_when_cut_and_painted() -> None:
    lines = table(COLUMNS, ROWS, Screen(40)).splitlines()
    assert {
        line.find(word) for line, word in zip(lines, ("STATE", "conn", "wait"), strict=True)
    } == {lines[0].find("STATE")}
    painted = table(COLUMNS, ROWS, Screen(40, colour=True))
    for code in (BOLD, "32", ""):
        painted = painted.replace(f"\x1b[{code}m", "")
    assert painted.splitlines() == lines


def test_a_forged_row_stays_one_line() -> None:
    rows = [[Cell("x\nroot  connected\x1b[1A"), Cell("waiting"), Cell("")]]
    assert len(table(COLUMNS, rows, Screen()).splitlines()) == 2


def test_only_a_terminal_has_width_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "55")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Screen.of(Tty()) == Screen(55, colour=True)
    assert Screen.of(io.StringIO()) == Screen(None, colour=False)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("COLUMNS", "55")
    monkeypatch.setenv(name, value)
    assert Screen.of(Tty()) == Screen(55, colour=False)


def test_only_what_has_a_colour_is_painted() -> None:
    screen = Screen(colour=True)
    assert screen.paint("up", "32") == "\x1b[32mup\x1b[m"
    assert screen.paint("up", "") == "up"
    assert screen.paint("", "32") == ""
    assert Screen().paint("up", "32") == "up"
