# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line of storaged-connctl."""

import argparse
from typing import Final

WAIT: Final = 30.0
"""Seconds that a person waits at a prompt before wondering; --wait and --timeout change it."""

LONGEST_WAIT: Final = 3600.0
"""Seconds. Source: dbus/org.storage.Connection1.xml, WaitFor."""


class Arguments(argparse.Namespace):
    """The command line; what a command does not take has its default."""

    bus: str = "system"
    json: bool = False
    command: str = ""
    cid: str = ""
    uri: str = ""
    state: str = ""
    timeout: float = WAIT
    wait: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.options: list[tuple[str, str]] = []
        self.secrets: list[tuple[str, str]] = []


def parse(argv: list[str], manual: str = "") -> Arguments:
    """Read a command line.

    Args:
        argv: without the program's name.
        manual: what --help says around the list of commands: a first paragraph, and the rest.

    Raises:
        SystemExit: 2, it is wrong, and the usage is printed; 0, the help is.
    """
    return _parser(manual).parse_args(_optional_wait(argv), Arguments())


def _optional_wait(argv: list[str]) -> list[str]:
    # argparse's own way, nargs="?", would take the URI for the seconds.
    end = argv.index("--") if "--" in argv else len(argv)
    return [f"--wait={WAIT:g}" if one == "--wait" else one for one in argv[:end]] + argv[end:]


def _parser(manual: str) -> argparse.ArgumentParser:
    about, _, epilog = manual.partition("\n\n")
    parser = argparse.ArgumentParser(
        "storaged-connctl",
        description=about,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # the defaults are those of Arguments
        allow_abbrev=False,
    )
    _add_common(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add(commands, "list", "list all connections, also those that nobody manages")
    _add(commands, "show", "show all about one connection", "cid")
    manage = _add(commands, "manage", "keep storage connected from now on", "uri", "cid")
    _add_option(manage)
    manage.add_argument(
        "--wait",
        type=_seconds,
        metavar="[=SECONDS]",
        help=f"wait until it is connected or has failed; --wait alone is {WAIT:g} s",
    )
    _add(commands, "unmanage", "forget a connection, and disconnect if it was the last", "cid")
    _add(commands, "reconnect", "have one that waits or has failed tried at once", "cid")
    wait = _add(commands, "wait", "wait until a connection is in a state", "cid", "state")
    wait.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"give up after these; {WAIT:g} unless told",
    )
    _add(commands, "monitor", "print each change as it happens, until interrupted")
    _add_option(_add(commands, "validate", "find out whether it would connect now", "uri"))
    _add_option(_add(commands, "discover", "list what a server offers", "uri"))
    return parser


_HELP: Final = {
    "cid": "the connection id: any text without '/', or the temporary one of an unmanaged one",
    "uri": "such as file:///srv/data or posix+ext4:/dev/sdb1",
    "state": "waiting, connecting, connected, unresponsive, disconnecting or failed",
}


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    about: str,
    *positional: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=about,
        description=about,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _add_common(parser)
    for one in positional:
        parser.add_argument(one, metavar=one.upper(), type=_text, help=_HELP[one])
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bus",
        type=_text,
        metavar="ADDRESS",
        help=f"of the bus, or system or session; {Arguments.bus} unless told",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--option",
        dest="options",
        action="append",
        type=_pair,
        metavar="KEY=VALUE",
        help="an option that the scheme knows, such as lifetime=runtime; may be repeated",
    )
    parser.add_argument(
        "--secret",
        dest="secrets",
        action="append",
        type=_source,
        metavar="KEY[=FILE]",
        help="an option that is a secret, such as password: from a file, from standard input where"
        " it is -, or asked for at the terminal; may be repeated",
    )


def _text(given: str) -> str:
    try:
        given.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{given!a} is not UTF-8") from None
    return given


def _pair(given: str) -> tuple[str, str]:
    key, equals, value = _text(given).partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{given!r} is not KEY=VALUE")
    return key, value


def _source(given: str) -> tuple[str, str]:
    key, equals, source = given.partition("=")
    if not key or bool(equals) != bool(source):
        raise argparse.ArgumentTypeError("write KEY or KEY=FILE")
    return _text(key), source


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_WAIT:
        raise argparse.ArgumentTypeError(
            f"{given!r} is not a number of seconds above 0 and up to {LONGEST_WAIT:g}"
        )
    return seconds
