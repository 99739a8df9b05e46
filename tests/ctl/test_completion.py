# SPDX-License-Identifier: LGPL-2.1-or-later
"""What bash offers after storaged-connctl, asked of bash itself."""

import argparse
import subprocess
from pathlib import Path
from typing import Final

import pytest

from storaged_conn.ctl import arguments, commands
from storaged_conn.runner import PUBLIC
from tests.live import DEADLINE

SCRIPT: Final = Path(__file__).parents[2] / "completion/storaged-connctl"

# As bash does it at a press of the tabulator. Source: bash(1), Programmable Completion.
ASK: Final = """
set -u
storaged-connctl() { cat "$listing"; }
. "$script"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_storaged_connctl
[ ${#COMPREPLY[@]} = 0 ] || printf '%s\\n' "${COMPREPLY[@]}"
"""

PARSER: Final = arguments._parser("")


def offered(*words: str, listing: Path = Path("/dev/null")) -> set[str]:
    """Give what is offered for the last word."""
    argv = ["bash", "--norc", "-c", ASK, "bash", "storaged-connctl", *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=DEADLINE, check=False,
        env={"script": str(SCRIPT), "listing": str(listing), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return set(done.stdout.splitlines())


def parser_of(command: str) -> argparse.ArgumentParser:
    (found,) = (one for one in PARSER._actions if isinstance(one, argparse._SubParsersAction))
    parser = found.choices[command]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def long_options(parser: argparse.ArgumentParser) -> set[str]:
    names = {one for action in parser._actions for one in action.option_strings}
    return {one for one in names if one.startswith("--")}


def test_every_command_is_offered() -> None:
    assert offered("") == set(commands.COMMANDS)
    assert offered("--json", "--bus", "session", "un") == {"unmanage"}


def test_the_options_that_every_command_has_are_offered() -> None:
    assert offered("--") == long_options(PARSER)
    assert offered("--bus", "") == {"system", "session"}


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_every_option_of_a_command_is_offered_after_it(command: str) -> None:
    assert offered(command, "-") == long_options(parser_of(command))


def test_states_are_offered_where_one_is_waited_for() -> None:
    assert offered("wait", "--timeout", "5", "data", "") == set(PUBLIC.values())
    assert offered("wait", "data", "un") == {"unresponsive"}


@pytest.mark.parametrize("command", ["show", "unmanage", "reconnect", "wait"])
def test_ids_are_offered_and_quoted(command: str, tmp_path: Path) -> None:
    listing = tmp_path / "listing"
    listing.write_text(
        '[{"ConnectionId": "my data", "Uri": "file:///a"}, {\n  "ConnectionId": "$(id)"},'
        ' {"ConnectionId": "a\\"b"}]'
    )
    assert offered(command, "", listing=listing) == {r"my\ data", r"\$\(id\)"}
    assert offered(command, "m", listing=listing) == {r"my\ data"}
    assert not offered(command, "--bus=session", "my data", "x", listing=listing)


@pytest.mark.parametrize("words", [("manage", ""), ("show", "a", ""), ("manage", "-o", "")])
def test_nothing_is_offered_where_nothing_is_known(words: tuple[str, ...]) -> None:
    assert not offered(*words)
