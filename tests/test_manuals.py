# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual pages say what the code does, and can be read."""

import argparse
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from storaged_conn import __main__, config
from storaged_conn.core.backoff import LONGEST_WAIT, REFUSED_WAIT, spread
from storaged_conn.ctl import arguments, commands
from storaged_conn.drivers import iscsi_options, nfs_options, nvme_options, nvme_remote
from storaged_conn.drivers.iscsi_recovery import PATIENCE
from storaged_conn.drivers.iscsi_view import PENDING
from storaged_conn.errors import AttemptError, InitiatorError
from storaged_conn.runner import PUBLIC
from storaged_conn.system.iscsi_login import PORT
from storaged_conn.system.nvme_tcp import KINDS
from tools import manual

PAGES = sorted((Path(__file__).parents[1] / "man").iterdir())


def page(name: str) -> str:
    (path,) = (one for one in PAGES if one.name == name)
    return path.read_text().replace("\\-", "-")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_has_no_mistakes(path: Path) -> None:
    done = subprocess.run(
        ["groff", "-ww", "-man", "-Tutf8", path], capture_output=True, text=True, check=True
    )
    assert not done.stderr
    assert path.stem.upper() in done.stdout


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("storaged-conn-nfs.5", nfs_options.OPTIONS),
        ("storaged-conn-iscsi.5", iscsi_options.OPTIONS),
    ],
)
def test_every_option_is_explained_with_its_type(name: str, options: Mapping[str, str]) -> None:
    explained = re.findall(r'^\.BR ([a-z-]+) " \((\w+)\)"$', page(name), re.M)
    assert dict(explained) == options


def test_every_flag_version_and_flavour_of_nfs_is_named() -> None:
    words = set(re.findall(r"[\w.-]*\w", page("storaged-conn-nfs.5")))
    for names in (nfs_options.FLAGS, nfs_options.VERSIONS, nfs_options.FLAVOURS):
        assert set(names) <= words
    assert set(nfs_options.STALE) <= words


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Give all options, those of commands too."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from options(one)


def explained(name: str) -> set[str]:
    """Give the options at the beginning of tagged paragraphs."""
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", "".join(tags(name))))


def tags(name: str) -> list[str]:
    return re.findall(r"^\.TP\n(.*\n)", page(name), re.M)


def test_every_option_of_the_service_is_explained_and_no_other() -> None:
    assert explained("storaged-connd.8") == set(options(__main__._arguments()))


def test_every_command_and_option_of_the_client_is_explained_and_no_other() -> None:
    assert explained("storaged-connctl.1") == set(options(arguments._parser("")))
    found = re.findall(
        r'^\.BI? "?([a-z]+)(?: "[A-Z ]+")?\n', "".join(tags("storaged-connctl.1")), re.M
    )
    assert set(commands.COMMANDS) == set(found)
    assert set(PUBLIC.values()) <= set(re.findall(r"\w+", page("storaged-connctl.1")))


def test_the_configuration_is_explained_with_its_defaults() -> None:
    text = page("storaged-conn.conf.5")
    found = []
    for section, body in re.findall(r"^\.SH \[(\w+)\] SECTION\n(.*?)(?=^\.SH)", text, re.M | re.S):
        found += [f"[{section.title()}] {key}" for key in re.findall(r"^\.B (\w+)=$", body, re.M)]
    assert found == list(config.known())
    default = config.Config()
    keepalive = default.keepalive
    seconds = keepalive.idle + keepalive.interval * keepalive.count
    words = " ".join(text.split())
    for said in (f"{default.audit / 60:g}min by default", f"{seconds} seconds by default"):
        assert said in words
    for value in (keepalive.idle, keepalive.interval, keepalive.count):
        assert f", {value} by default" in words


def test_the_page_of_the_interface_is_what_the_interface_s_documentation_says() -> None:
    assert manual.PAGE.read_text() == manual.page(), "run 'make man'"


def test_nothing_in_the_documentation_is_read_as_roff() -> None:
    assert manual._escape(".TH isn't \\fB-") == "\\&.TH isn\\(aqt \\efB\\-"


def words(name: str) -> str:
    """Give a page as it is read, without the markup."""
    lines = (re.sub(r"^\.[A-Z]+ ?", "", line) for line in page(name).splitlines())
    return " ".join(re.sub(r'["\\]|\\f.', "", " ".join(lines)).split())


def test_the_numbers_of_iscsi_are_those_of_the_code() -> None:
    text = words("storaged-conn-iscsi.5")
    for least, most in iscsi_options.LIMITS.values():
        assert f"from {least} to {most}" in text
    assert f"{iscsi_options.LOGIN_TIMEOUT} by default" in text
    assert f"PORT is {PORT} if" in text
    assert f"brought back {PATIENCE:g} seconds after" in text
    assert f"at most {LONGEST_WAIT:g} seconds" in text
    soonest, latest = spread(REFUSED_WAIT, 0) / 60, spread(REFUSED_WAIT, 1) / 60
    assert f"made {soonest:g} to {latest:g} minutes later" in text


def test_the_values_and_reasons_of_iscsi_are_named() -> None:
    found = set(re.findall(r"[\w.-]*\w", page("storaged-conn-iscsi.5")))
    reasons = {error.reason for error in below(AttemptError)}
    named = {PENDING, InitiatorError.reason} | (found & reasons)
    assert {*iscsi_options.DIGESTS, *named} <= found
    assert {"authentication", "not-found", "busy", "not-usable"} <= found & reasons


def below(error: type[AttemptError]) -> Iterator[type[AttemptError]]:
    for child in error.__subclasses__():
        yield from ([child] if "reason" in vars(child) else below(child))


def test_every_nvme_option_is_explained_with_its_type() -> None:
    explained = re.findall(r'^\.BR ([a-z-]+) " \((\w+)\)"$', page("storaged-conn-nvme.5"), re.M)
    assert dict(explained) == nvme_options.OPTIONS


def test_every_range_default_and_port_of_nvme_is_as_it_is_said() -> None:
    text = page("storaged-conn-nvme.5")
    told = dict(re.findall(r'^\.BR ([a-z-]+) " \(x\)"\n((?:[^.].*\n)*)', text, re.M))
    for name, allowed in nvme_options.RANGES.items():
        numbers = {int(number) for number in re.findall(r"-?\d+", told[name])}
        assert {allowed[0], allowed[-1]} <= numbers, name
    assert f"{nvme_options.FOR_EVER}, the default, for never" in told["ctrl-loss-timeout"]
    assert f"from {nvme_options.RECONNECT_DELAY}, the default" in told["reconnect-delay"]
    assert f"the port is {nvme_remote.PORT} if none is given" in text
    assert f"at port {nvme_remote.DISCOVERY_PORT}" in text
    assert set(nvme_options.IDENTITY) | set(KINDS.values()) <= set(re.findall(r"[\w-]*\w", text))
