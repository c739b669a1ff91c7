"""Which injector sends what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.split import rows_of_injector

SESSIONS = st.lists(st.integers(-1, 20), max_size=200)


@given(SESSIONS, st.integers(1, 7))
def test_every_row_is_sent_by_exactly_one_injector(sessions: list[int], n: int) -> None:
    column = np.array(sessions, dtype=np.int64)
    shares = [rows_of_injector(column, k, n) for k in range(n)]
    assert sorted(row for share in shares for row in share) == list(range(len(sessions)))


@given(SESSIONS, st.integers(1, 7))
def test_a_session_stays_with_one_injector(sessions: list[int], n: int) -> None:
    column = np.array(sessions, dtype=np.int64)
    owners: dict[int, set[int]] = {}
    for k in range(n):
        for row in rows_of_injector(column, k, n):
            owners.setdefault(sessions[row], set()).add(k)
    assert all(len(who) == 1 for session, who in owners.items() if session >= 0)


@given(st.integers(0, 100), st.integers(1, 7))
def test_single_requests_are_dealt_out_evenly(count: int, n: int) -> None:
    column = np.full(count, -1, dtype=np.int64)
    assert rows_of_injector(column, n - 1, n) == list(range(count))[n - 1 :: n]


def test_the_owner_of_a_session_is_the_same_in_every_process() -> None:
    assert rows_of_injector(np.arange(8, dtype=np.int64), 0, 2) == [4, 5, 6, 7]


def test_an_injector_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="injector 2 of 2"):
        rows_of_injector(np.array([-1]), 2, 2)
