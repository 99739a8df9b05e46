# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names, numbers and reasons of errors are API: each is there once, and is documented."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from storaged_conn import errors
from storaged_conn.errors import AttemptError, ConnError

DBUS: Final = Path(__file__).parents[1] / "dbus"
MANAGER: Final = " ".join((DBUS / "org.storage.Connection.Manager1.xml").read_text().split())
CONNECTION: Final = " ".join((DBUS / "org.storage.Connection1.xml").read_text().split())


def below(error: type[ConnError]) -> Iterator[type[ConnError]]:
    for child in error.__subclasses__():
        yield child
        yield from below(child)


ALL: Final = [error for error in below(ConnError) if error.__module__ == errors.__name__]
CONCRETE: Final = [error for error in ALL if not error.__subclasses__()]
ATTEMPTS: Final = [error for error in CONCRETE if issubclass(error, AttemptError)]


def test_the_last_of_each_branch_and_no_other_has_a_name() -> None:
    assert [error for error in ALL if "name" in vars(error)] == CONCRETE
    assert [error for error in ALL if "code" in vars(error)] == CONCRETE
    assert [error for error in ALL if "reason" in vars(error)] == ATTEMPTS


def test_names_numbers_and_reasons_are_unique() -> None:
    assert len({error.name for error in CONCRETE}) == len(CONCRETE)
    assert len({error.code for error in CONCRETE}) == len(CONCRETE)
    assert len({error.reason for error in ATTEMPTS}) == len(ATTEMPTS)


def test_the_contract_lists_these_errors_with_these_numbers_and_no_other() -> None:
    listing = MANAGER.partition("Errors of a call:")[2].partition(" A call of more than")[0]
    documented = re.findall(r"(\w+) \((\d+)\)", listing)
    assert sorted(documented) == sorted((error.name, str(error.code)) for error in CONCRETE)


@pytest.mark.parametrize("error", ATTEMPTS)
def test_the_contract_has_the_reason(error: type[AttemptError]) -> None:
    reasons = CONNECTION.partition("StateReason: why")[2].partition("-->")[0]
    assert re.search(rf"[,:] {error.reason}[,. ]", reasons)


@pytest.mark.parametrize("error", ALL)
def test_the_tree_in_the_docstring_has_it_below_its_parent(error: type[ConnError]) -> None:
    lines = (errors.__doc__ or "").splitlines()
    place = next(number for number, line in enumerate(lines) if error.__name__ in line.split())
    indent = len(lines[place]) - len(lines[place].lstrip())
    above = [line for line in lines[:place] if len(line) - len(line.lstrip()) < indent and line]
    assert above[-1].split()[0] == error.__bases__[0].__name__


def test_a_caller_sees_the_name_on_the_bus_and_the_text() -> None:
    error = errors.NotFoundError("connection_id 'a' is not managed; see List")
    assert error.dbus_name == "org.storage.Connection.Error.NotFound"
    assert error.code == 2
    assert str(error) == "connection_id 'a' is not managed; see List"
