"""How much load a retry budget lets retries add."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.overload.retry_budget import RetryBudget


def test_five_requests_earn_one_retry_at_a_fifth() -> None:
    budget = RetryBudget(fraction=0.2, reserve_per_s=0.0)
    for _ in range(4):
        budget.deposit(0.0)
    assert not budget.try_withdraw(0.0)
    budget.deposit(0.0)
    assert budget.try_withdraw(0.0)
    assert not budget.try_withdraw(0.0)


def test_a_quiet_client_may_retry_from_the_reserve() -> None:
    budget = RetryBudget(fraction=0.2, reserve_per_s=0.5, ttl_s=10.0)
    assert [budget.try_withdraw(0.0) for _ in range(6)] == [True] * 5 + [False]


def test_what_was_earned_expires_with_the_window() -> None:
    budget = RetryBudget(fraction=1.0, reserve_per_s=0.0, ttl_s=10.0)
    budget.deposit(0.5)
    assert budget.available(9.9) == pytest.approx(1.0)
    assert budget.available(10.1) == pytest.approx(0.0)


def test_what_was_spent_is_forgotten_with_the_window() -> None:
    budget = RetryBudget(fraction=0.0, reserve_per_s=0.1, ttl_s=10.0)
    assert budget.try_withdraw(0.5)
    assert not budget.try_withdraw(9.9)
    assert budget.try_withdraw(10.1)


def test_a_long_silence_leaves_the_reserve_alone() -> None:
    budget = RetryBudget(fraction=1.0, reserve_per_s=0.1, ttl_s=10.0)
    for _ in range(50):
        budget.deposit(3.0)
    assert budget.available(1e6) == pytest.approx(1.0)


@pytest.mark.parametrize("rate_per_s", [1, 10, 100])
def test_a_peer_that_always_fails_sees_at_most_the_promised_load(rate_per_s: int) -> None:
    fraction, reserve_per_s, seconds = 0.2, 1.0, 100
    budget = RetryBudget(fraction, reserve_per_s)
    retries = 0
    for i in range(rate_per_s * seconds):
        now = i / rate_per_s
        budget.deposit(now)
        # Every attempt fails and would be retried for ever.
        while budget.try_withdraw(now):
            retries += 1
    load = 1 + retries / (rate_per_s * seconds)
    # Beside the rate, the budget may be spent once in advance: one window of it.
    allowance = (fraction * rate_per_s + reserve_per_s) * 10.0 / (rate_per_s * seconds)
    assert load <= 1 + fraction + reserve_per_s / rate_per_s + allowance
    assert load >= 1 + fraction * 0.9


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=200))
def test_retries_of_any_window_never_exceed_what_its_requests_earned(
    steps: list[tuple[float, bool]],
) -> None:
    budget = RetryBudget(fraction=0.5, reserve_per_s=0.2, ttl_s=10.0)
    now = 0.0
    requests: list[float] = []
    granted: list[float] = []
    for pause_s, is_request in steps:
        now += pause_s
        if is_request:
            budget.deposit(now)
            requests.append(now)
        elif budget.try_withdraw(now):
            granted.append(now)
            # Slices are a second long, so the window at `now` reaches back nine to ten seconds.
            earned = 0.5 * sum(t > now - 10.0 for t in requests) + 2.0
            spent = sum(t > now - 9.0 for t in granted)
            assert spent <= earned + 1e-6


def test_statistics_count_what_was_granted_and_denied() -> None:
    budget = RetryBudget(fraction=0.0, reserve_per_s=0.1)
    budget.deposit(0.0)
    assert (budget.try_withdraw(0.0), budget.try_withdraw(0.0)) == (True, False)
    statistics = budget.statistics(0.0)
    assert (statistics.requests, statistics.granted, statistics.denied) == (1, 1, 1)


def test_a_negative_fraction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fraction \(-0.1\)"):
        RetryBudget(fraction=-0.1)
