# SPDX-License-Identifier: LGPL-2.1-or-later
"""A connection id and its object path: each can be had from the other."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.names import ROOT, connection_id, object_path

LABELS = {
    "nas-1": "nas_2d1",
    "1st": "_31st",
    "a_b": "a_5fb",
    "ü/x": "_c3_bc_2fx",
    "..": "_2e_2e",
    "": "_",
    "_": "_5f",
    "a1": "a1",
    "unmanaged/mount-34": "unmanaged_2fmount_2d34",
}
"""Source: measured with sd_bus_path_encode(3) of systemd 252; the last four follow its text."""

# Object paths are made of [A-Za-z0-9_]. Source: D-Bus specification, Valid Object Paths.
PATH = re.compile(r"/org/storage/Connection/[A-Za-z0-9_]+")

likely = st.text("aZ09_/-. é\x00", max_size=8)


@pytest.mark.parametrize(("cid", "label"), LABELS.items())
def test_a_path_is_escaped_as_systemd_does(cid: str, label: str) -> None:
    assert object_path(cid) == f"{ROOT}/{label}"
    assert connection_id(f"{ROOT}/{label}") == cid


@given(st.text() | likely)
def test_every_id_can_be_had_back_from_its_path(cid: str) -> None:
    path = object_path(cid)
    assert PATH.fullmatch(path)
    assert connection_id(path) == cid


@given(st.text() | likely, st.text() | likely)
def test_two_ids_never_share_a_path(one: str, other: str) -> None:
    assert (object_path(one) == object_path(other)) is (one == other)


@given(st.text("abcdef09_2EF", min_size=1, max_size=8))
def test_two_paths_never_share_an_id(label: str) -> None:
    cid = connection_id(f"{ROOT}/{label}")
    assert cid is None or object_path(cid) == f"{ROOT}/{label}"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        ROOT,
        f"{ROOT}/",
        f"{ROOT}/a/b",
        "/org/storage/Other/a",
        "a",
        f"{ROOT}/1st",  # a leading digit is escaped
        f"{ROOT}/_61",  # a letter is not
        f"{ROOT}/_2D",  # hexadecimal digits are small
        f"{ROOT}/_2",
        f"{ROOT}/__",
        f"{ROOT}/a_",
        f"{ROOT}/_zz",
        f"{ROOT}/_ff",  # not UTF-8
        f"{ROOT}/_c3",
        f"{ROOT}/_ 2",
        f"{ROOT}/é",
        f"{ROOT}/a-b",
    ],
)
def test_a_path_that_no_id_has_is_nobodys(path: str) -> None:
    assert connection_id(path) is None
