# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration: one INI file and its drop-ins, read once at the start.

What is unknown or wrong is reported with file and line, and the default is used for that key: a
typing error must not keep the storage away.
"""

import configparser
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

NAME: Final = "storaged-conn.conf"

DIRECTORIES: Final = ("/usr/lib", "/run", "/etc")
"""Where drop-ins are, the strongest last. Source: systemd-system.conf(5), CONFIGURATION DIRECTORIES
AND PRECEDENCE: a drop-in in /etc replaces the one of the same name elsewhere."""

UNITS: Final = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "ms": 0.001}
"""Source: systemd.time(7), PARSING TIME SPANS; the ones that make sense here."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How soon the kernel notices that a server is silent: after idle + interval * count seconds.

    The defaults notice within 3 to 4.1 s, and cost a segment a second and server. Whole seconds are
    all that the kernel takes. Source: tcp(7), TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT.
    """

    idle: int = 1
    interval: int = 1
    count: int = 3


@dataclass(frozen=True, slots=True)
class Config:
    """What an administrator may set.

    Attributes:
        audit: seconds between two looks at everything, in case an event was missed; 0 is never.
        keepalive: see Keepalive.
    """

    audit: float = 900.0
    keepalive: Keepalive = field(default_factory=Keepalive)


class _ValueError(ValueError):
    """What is wrong with a value, in words."""


def load(root: Path = Path("/")) -> tuple[Config, list[str]]:
    """Read the configuration.

    Args:
        root: where `etc`, `run` and `usr/lib` are.

    Returns:
        The configuration, and what is wrong with the files, a line each.
    """
    config, complaints = Config(), []
    for file in _files(root):
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            complaints.append(f"{file}: cannot be read: {error}")
            continue
        for line, section, key, value in _entries(file, text, complaints):
            try:
                config = SETTINGS[section, key](config, value)
            except KeyError:
                complaints.append(f"{file}:{line}: [{section}] {key} is unknown; it is ignored")
            except _ValueError as error:
                complaints.append(f"{file}:{line}: {error}")
    return config, complaints


def _files(root: Path) -> Iterator[Path]:
    """Give the main file, then the drop-ins in the order of their names."""
    main = root / "etc/storaged-conn" / NAME
    if main.exists():
        yield main
    drop_ins: dict[str, Path] = {}
    for directory in DIRECTORIES:
        folder = root / directory.lstrip("/") / "storaged-conn" / f"{NAME}.d"
        drop_ins |= {file.name: file for file in folder.glob("*.conf")}
    yield from (drop_ins[name] for name in sorted(drop_ins))


def _entries(file: Path, text: str, complaints: list[str]) -> Iterator[tuple[int, str, str, str]]:
    parser = configparser.RawConfigParser(
        strict=False, delimiters=("=",), empty_lines_in_values=False
    )
    parser.optionxform = str  # type: ignore[method-assign,assignment]  # as its documentation says
    try:
        parser.read_string(text)
    except configparser.MissingSectionHeaderError as error:
        complaints.append(f"{file}:{error.lineno}: there is no [section] before this line")
    except configparser.ParsingError as error:
        complaints += [f"{file}:{line}: cannot be understood" for line, _ in error.errors]
    for section in parser.sections():
        for key, value in parser.items(section):
            yield _line_of(text, section, key), section, key, value


def _line_of(text: str, section: str, key: str) -> int:
    """Find where a key is set last; configparser does not say."""
    current, found = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\[(.+)\]", line):
            current = match[1]
        elif current == section and line.partition("=")[0].strip() == key:
            found = number
    return found


def _span(key: str, value: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.strip())
    if not match or match[2] not in UNITS:
        raise _ValueError(f"{key}={value} is no time span such as 90s, 15min or 0; default used")
    return float(match[1]) * UNITS[match[2]]


def _whole(key: str, value: str, highest: int) -> int:
    number = _span(key, value)
    if number != int(number) or not 1 <= number <= highest:
        raise _ValueError(f"{key}={value} must be a whole number from 1 to {highest}; default used")
    return int(number)


def _audit(config: Config, value: str) -> Config:
    return replace(config, audit=_span("IntervalSec", value))


def _idle(config: Config, value: str) -> Config:
    idle = _whole("IdleSec", value, 32767)
    return replace(config, keepalive=replace(config.keepalive, idle=idle))


def _interval(config: Config, value: str) -> Config:
    interval = _whole("IntervalSec", value, 32767)
    return replace(config, keepalive=replace(config.keepalive, interval=interval))


def _count(config: Config, value: str) -> Config:
    count = _whole("Count", value, 127)
    return replace(config, keepalive=replace(config.keepalive, count=count))


SETTINGS: Final[Mapping[tuple[str, str], Callable[[Config, str], Config]]] = {
    ("Audit", "IntervalSec"): _audit,
    ("Keepalive", "IdleSec"): _idle,
    ("Keepalive", "IntervalSec"): _interval,
    ("Keepalive", "Count"): _count,
}
"""Every key. The highest keepalive values are the kernel's: include/net/tcp.h, MAX_TCP_KEEPIDLE,
MAX_TCP_KEEPINTVL and MAX_TCP_KEEPCNT."""


def known() -> Iterable[str]:
    """Give every key as `[section] key`, for the manual and its test."""
    return (f"[{section}] {key}" for section, key in SETTINGS)
