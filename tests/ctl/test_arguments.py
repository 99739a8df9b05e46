# SPDX-License-Identifier: LGPL-2.1-or-later
import pytest

import storaged_conn.ctl.__main__ as program
from storaged_conn.ctl.arguments import Arguments, parse


def test_what_is_not_said_has_its_default() -> None:
    arguments = parse(["list"])
    assert isinstance(arguments, Arguments)
    assert (arguments.bus, arguments.json, arguments.wait) == ("system", False, None)
    assert (arguments.timeout, arguments.options) == (30.0, [])
    assert parse(["wait", "x", "connected"]).timeout == 30.0
    assert parse(["manage", "u:r", "x"]).options == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--json", "--bus", "session", "show", "x"],
        ["show", "--json", "--bus=session", "x"],
        ["--json", "show", "x", "--bus", "session"],
    ],
)
def test_common_options_stand_before_or_after_the_command(argv: list[str]) -> None:
    arguments = parse(argv)
    assert (arguments.command, arguments.cid) == ("show", "x")
    assert (arguments.bus, arguments.json) == ("session", True)


@pytest.mark.parametrize(
    ("argv", "wait"),
    [
        (["manage", "file:///d", "x"], None),
        (["manage", "--wait", "file:///d", "x"], 30.0),
        (["manage", "file:///d", "x", "--wait"], 30.0),
        (["manage", "file:///d", "x", "--wait=0.5"], 0.5),
    ],
)
def test_waiting_takes_its_seconds_only_after_an_equals_sign(
    argv: list[str], wait: float | None
) -> None:
    arguments = parse(argv)
    assert (arguments.uri, arguments.cid, arguments.wait) == ("file:///d", "x", wait)


def test_after_two_dashes_an_id_may_look_like_an_option() -> None:
    assert parse(["show", "--", "--wait"]).cid == "--wait"


def test_options_are_split_at_the_first_equals_sign() -> None:
    arguments = parse(["manage", "-o", "a=b=c", "u:r", "x", "-o", "d=", "--option=e=1"])
    assert arguments.options == [("a", "b=c"), ("d", ""), ("e", "1")]


def test_secrets_name_where_they_are() -> None:
    arguments = parse(["discover", "--secret", "a", "u:r", "--secret=b=-", "--secret", "c=/d=e"])
    assert arguments.secrets == [("a", ""), ("b", "-"), ("c", "/d=e")]
    assert parse(["validate", "u:r"]).secrets == []


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["show"], "CID"),
        (["list", "x"], "unrecognized arguments: x"),
        (["manage", "u:r"], "CID"),
        (["manage", "u:r", "x", "-o", "ro"], "'ro' is not KEY=VALUE"),
        (["manage", "u:r", "x", "-o", "=1"], "'=1' is not KEY=VALUE"),
        (["manage", "u:r", "x", "--secret", "password="], "--secret: write KEY or KEY=FILE"),
        (["manage", "u:r", "x", "--secret", "=hunter2"], "--secret: write KEY or KEY=FILE"),
        (["manage", "u:r", "x", "--wait=soon"], "'soon' is not a number of seconds"),
        (["manage", "u:r", "x", "--wait=0"], "'0' is not a number of seconds"),
        (["wait", "x", "connected", "--timeout", "nan"], "'nan' is not a number of seconds"),
        (["wait", "x", "connected", "--timeout", "3601"], "up to 3600"),
        (["wait", "x"], "STATE"),
        (["show", "\udcff"], "is not UTF-8"),
        (["--js", "list"], "--js"),
    ],
)
def test_a_wrong_usage_is_named_and_ends_with_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert complaint in shown
    assert "hunter2" not in shown


def test_help_has_the_commands_and_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], program.__doc__ or "")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for command in ("list", "show", "manage", "unmanage", "reconnect", "wait", "monitor"):
        assert f"\n    {command} " in shown
    for status in ("0  done", "1  the service or the world said no", "2  wrong usage"):
        assert f"\n  {status}" in shown
