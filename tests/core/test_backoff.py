# SPDX-License-Identifier: LGPL-2.1-or-later
"""The waits are exact, so that no change of them goes unseen."""

import pytest

from storaged_conn.core.backoff import Allowance, spread, wait_seconds


@pytest.mark.parametrize(
    ("failures", "longest"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 60), (8, 60)]
)
def test_the_wait_doubles_up_to_a_minute(failures: int, longest: float) -> None:
    assert wait_seconds(failures, jitter=1) == longest
    assert wait_seconds(failures, jitter=0) == longest / 2


def test_no_number_of_failures_is_too_large() -> None:
    assert wait_seconds(10**9, jitter=1) == 60


@pytest.mark.parametrize(("jitter", "seconds"), [(0, 150), (0.5, 225), (1, 300)])
def test_jitter_takes_between_a_half_and_the_whole(jitter: float, seconds: float) -> None:
    assert spread(300, jitter) == seconds


def test_an_allowance_gives_a_burst_and_then_one_a_second() -> None:
    allowance = Allowance()
    assert [allowance.take(5) for _ in range(60)] == [0] * 60
    assert allowance.take(5) == 1
    assert allowance.take(5.25) == 0.75
    assert allowance.take(6) == 0
    assert allowance.take(6) == 1


def test_an_allowance_never_saves_up_more_than_a_burst() -> None:
    allowance = Allowance()
    assert [allowance.take(1_000_000) for _ in range(61)] == [0] * 60 + [1]
    assert [allowance.take(2_000_000) for _ in range(61)] == [0] * 60 + [1]


def test_what_nothing_holds_back_is_counted_and_never_owed() -> None:
    allowance = Allowance(tokens=1.25)
    allowance.spend(0)
    assert allowance == Allowance(tokens=0.25)
    allowance.spend(0.5)
    assert allowance == Allowance(tokens=0, since=0.5)
