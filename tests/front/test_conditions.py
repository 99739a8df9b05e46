# SPDX-License-Identifier: LGPL-2.1-or-later
import pytest

from storaged_conn.core.model import Foreign, Present
from storaged_conn.front.faces import describe
from storaged_conn.unmanaged import View


@pytest.mark.parametrize(
    ("responsive", "condition"),
    [(True, (True, "connected", "")), (False, (False, "unresponsive", "unresponsive"))],
)
def test_what_nobody_manages_is_shown_as_it_is(
    condition: tuple[bool, str, str], *, responsive: bool
) -> None:
    present = Present("iscsi-session-1", ours=False, responsive=responsive)
    shown = describe(View("unmanaged/iscsi-session-1", foreign=Foreign("iscsi://h/x", present)))
    assert (shown["Connected"], shown["State"], shown["StateReason"]) == condition
