# SPDX-License-Identifier: LGPL-2.1-or-later
import copy
import dataclasses
import json
import pickle
import traceback
from collections.abc import Callable

import pytest

from storaged_conn.core.model import Record, Target
from storaged_conn.core.secret import Secret

CANARY = "canary-hunter2"
SECRET = Secret(CANARY.encode())


def test_only_who_asks_gets_the_bytes() -> None:
    assert SECRET.reveal() == CANARY.encode()
    assert Secret(b"\0\xff").reveal() == b"\0\xff"


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        format,
        lambda one: f"{one}{one!r}{one!s}{one!a}{one:>40}",
        lambda one: "%s %r" % (one, one),  # noqa: UP031  # as logging does it
        lambda one: str([one, {one: one}, (one,)]),
        lambda one: repr(Record("c", "iscsi://h/i", {"password": one})),
        lambda one: repr(Target("iscsi://h/i", (), (("password", one),))),
        lambda one: repr(vars(type(one))) + str(dir(one)),
    ],
)
def test_no_text_shows_it(show: Callable[[Secret], str]) -> None:
    shown = show(SECRET)
    assert shown
    assert "hunter2" not in shown
    assert CANARY.encode().hex() not in shown


@pytest.mark.parametrize(
    "take",
    [
        *(lambda one, version=version: pickle.dumps(one, version) for version in range(6)),
        copy.copy,
        copy.deepcopy,
        lambda one: dataclasses.asdict(Record("c", "x:y", {"password": one})),
        lambda one: json.dumps({"password": one}),
        vars,
        bytes,
        list,
        len,
        lambda one: one.__getstate__(),
        lambda one: one + b"",
        lambda one: b"".join([one]),
    ],
)
def test_nothing_else_takes_it_out(take: Callable[[Secret], object]) -> None:
    with pytest.raises(TypeError) as caught:
        take(SECRET)
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in shown


def test_equal_secrets_are_equal_and_hash_alike() -> None:
    assert Secret(CANARY.encode()) == SECRET
    assert Secret(CANARY.encode() + b"x") != SECRET
    assert CANARY.encode() != SECRET
    assert len({SECRET, Secret(CANARY.encode()), Secret(b"other")}) == 2


def test_the_hash_says_nothing_about_the_value() -> None:
    assert hash(SECRET) == hash(Secret(b"other"))
