# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration: one INI file and its drop-ins, read once at the start.

What is unknown or wrong is reported with file and line, and left out, so that the default (or what
was set before) holds for that key: a typing error must not keep the storage away.
"""

import os.path
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

NAME: Final = "storaged-conn.conf"

DIRECTORIES: Final = ("/usr/lib", "/run", "/etc")
"""Where drop-ins are, the strongest last. Source: systemd-system.conf(5), CONFIGURATION DIRECTORIES
AND PRECEDENCE: a drop-in in /etc replaces the one of the same name elsewhere."""

BOOLEANS: Final = {
    **dict.fromkeys(("1", "yes", "true", "on"), True),
    **dict.fromkeys(("0", "no", "false", "off"), False),
}
"""Source: systemd.syntax(7)."""

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
        encrypt: keep secrets as systemd-creds(1) encrypts them.
    """

    audit: float = 900.0
    keepalive: Keepalive = field(default_factory=Keepalive)
    encrypt: bool = False


class _LineError(ValueError):
    """What is wrong with a line, in words."""


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
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            complaints.append(f"{file}: cannot be read: {error}")
            continue
        for number, section, line in _lines(text):
            try:
                config = _set(config, section, line)
            except _LineError as error:
                complaints.append(f"{file}:{number}: {error}; this line is ignored")
    return config, complaints


def _files(root: Path) -> Iterator[Path]:
    """Give the main file, then the drop-ins in the order of their names."""
    main = root / "etc/storaged-conn" / NAME
    if os.path.lexists(main):
        yield main
    drop_ins: dict[str, Path] = {}
    for directory in DIRECTORIES:
        folder = root / directory.lstrip("/") / "storaged-conn" / f"{NAME}.d"
        drop_ins |= {file.name: file for file in folder.glob("[!.]*.conf")}
    yield from (drop_ins[name] for name in sorted(drop_ins))


def _lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Give each line that should set something, with its number and its section.

    Not by configparser: it gives no line numbers, and up at the first line without a section.
    """
    section = ""
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if line.startswith("["):
            section = line[1:-1] if line.endswith("]") else line  # which is the name of none
        elif line and line[0] not in "#;":
            yield number, section, line


def _set(config: Config, section: str, line: str) -> Config:
    key, equals, value = map(str.strip, line.partition("="))
    if not section:
        raise _LineError(f"there is no [section] before {line!r}")
    if not equals:
        raise _LineError(f"{line!r} cannot be understood")
    if (section, key) not in SETTINGS:
        raise _LineError(f"[{section}] {key!r} is unknown")
    return SETTINGS[section, key](config, value)


def _number(value: str, units: Mapping[str, float]) -> float | None:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", value)
    return float(match[1]) * units[match[2]] if match and match[2] in units else None


def _whole(key: str, value: str, highest: int, units: Mapping[str, float] = UNITS) -> int:
    number = _number(value, units)
    if number is None or not 1 <= number <= highest or number % 1:
        raise _LineError(f"{key} must be a whole number from 1 to {highest}, not {value!r}")
    return int(number)


def _audit(config: Config, value: str) -> Config:
    interval = _number(value, UNITS)
    if interval is None:
        raise _LineError(f"IntervalSec must be a time such as 90s, 15min or 0, not {value!r}")
    return replace(config, audit=interval)


def _encrypt(config: Config, value: str) -> Config:
    if value not in BOOLEANS:
        raise _LineError(f"Encrypt must be yes or no, not {value!r}")
    return replace(config, encrypt=BOOLEANS[value])


def _idle(config: Config, value: str) -> Config:
    idle = _whole("IdleSec", value, 32767)
    return replace(config, keepalive=replace(config.keepalive, idle=idle))


def _interval(config: Config, value: str) -> Config:
    interval = _whole("IntervalSec", value, 32767)
    return replace(config, keepalive=replace(config.keepalive, interval=interval))


def _count(config: Config, value: str) -> Config:
    count = _whole("Count", value, 127, {"": 1.0})
    return replace(config, keepalive=replace(config.keepalive, count=count))


SETTINGS: Final[Mapping[tuple[str, str], Callable[[Config, str], Config]]] = {
    ("Audit", "IntervalSec"): _audit,
    ("Keepalive", "IdleSec"): _idle,
    ("Keepalive", "IntervalSec"): _interval,
    ("Keepalive", "Count"): _count,
    ("Secrets", "Encrypt"): _encrypt,
}
"""Every key. The highest keepalive values are the kernel's: include/net/tcp.h, MAX_TCP_KEEPIDLE,
MAX_TCP_KEEPINTVL and MAX_TCP_KEEPCNT."""


def known() -> Iterable[str]:
    """Give every key as `[section] key`, for the manual and its test."""
    return (f"[{section}] {key}" for section, key in SETTINGS)
