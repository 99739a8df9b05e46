# SPDX-License-Identifier: LGPL-2.1-or-later
from storaged_conn.ctl.watch import Added, Changed, Removed, apply


def test_changes_bring_a_view_up_to_date() -> None:
    view: dict[str, dict[str, object]] = {}
    apply(Added("/a", {"State": "waiting", "Uri": "u:a"}), view)
    apply(Added("/b", {"State": "waiting"}), view)
    apply(Changed("/a", {"State": "connected"}), view)
    apply(Removed("/b"), view)
    assert view == {"/a": {"State": "connected", "Uri": "u:a"}}


def test_late_changes_of_what_is_gone_change_nothing() -> None:
    view: dict[str, dict[str, object]] = {}
    apply(Changed("/a", {"State": "connected"}), view)
    apply(Removed("/a"), view)
    assert view == {}


def test_what_was_seen_before_is_not_changed_afterwards() -> None:
    view: dict[str, dict[str, object]] = {"/a": {"State": "waiting"}}
    before = view["/a"]
    apply(Changed("/a", {"State": "connected"}), view)
    assert before == {"State": "waiting"}
