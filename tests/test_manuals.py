# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual pages say what the code does, and can be read."""

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged_conn import __main__, config
from storaged_conn.ctl import arguments, commands
from storaged_conn.drivers import nfs_options
from storaged_conn.runner import PUBLIC
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


def test_every_nfs_option_is_explained_with_its_type() -> None:
    explained = re.findall(r'^\.BR ([a-z-]+) " \((\w+)\)"$', page("storaged-conn-nfs.5"), re.M)
    assert dict(explained) == nfs_options.OPTIONS


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
