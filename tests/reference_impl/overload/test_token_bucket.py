"""The bound that a token bucket keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.overload.token_bucket import TokenBucket


def test_it_starts_full_and_then_gives_the_rate() -> None:
    bucket = TokenBucket(rate_per_s=2.0, capacity=3.0)
    assert [bucket.try_take(0.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.try_take(0.49)
    assert bucket.try_take(0.5)


def test_it_never_holds_more_than_its_capacity() -> None:
    assert TokenBucket(rate_per_s=2.0, capacity=3.0).level(1e9) == 3.0


def test_the_wait_is_the_time_until_enough_has_arrived() -> None:
    bucket = TokenBucket(rate_per_s=2.0, capacity=3.0)
    bucket.take(0.0, 3.0)
    assert bucket.wait_s(0.0, 1.0) == pytest.approx(0.5)
    assert bucket.wait_s(0.25, 1.0) == pytest.approx(0.25)
    assert bucket.wait_s(9.0, 3.0) == 0.0


def test_a_debt_delays_whoever_comes_next() -> None:
    bucket = TokenBucket(rate_per_s=2.0, capacity=3.0)
    bucket.take(0.0, 5.0)
    assert bucket.level(0.0) == -2.0
    assert bucket.wait_s(0.0, 1.0) == pytest.approx(1.5)


def test_what_an_estimate_took_too_much_comes_back_up_to_the_capacity() -> None:
    bucket = TokenBucket(rate_per_s=2.0, capacity=3.0)
    bucket.take(0.0, 2.0)
    bucket.take(0.0, -1.5)
    assert bucket.level(0.0) == 2.5
    bucket.take(0.0, -9.0)
    assert bucket.level(0.0) == 3.0


def test_an_amount_that_it_never_holds_is_an_error_not_an_endless_wait() -> None:
    with pytest.raises(ValueError, match="never holds more than 3"):
        TokenBucket(rate_per_s=2.0, capacity=3.0).wait_s(0.0, 4.0)


@pytest.mark.parametrize(("rate_per_s", "capacity"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)])
def test_a_rate_or_capacity_that_is_not_positive_is_refused(
    rate_per_s: float, capacity: float
) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        TokenBucket(rate_per_s, capacity)


@given(
    st.floats(0.1, 100),
    st.floats(1, 50),
    st.lists(st.tuples(st.floats(0, 2), st.floats(0.1, 5)), max_size=100),
)
def test_over_any_interval_it_passes_at_most_capacity_and_rate(
    rate_per_s: float, capacity: float, requests: list[tuple[float, float]]
) -> None:
    bucket = TokenBucket(rate_per_s, capacity)
    now = 0.0
    passed: list[tuple[float, float]] = []
    for pause_s, amount in requests:
        now += pause_s
        if bucket.try_take(now, amount):
            passed.append((now, amount))
        for start, _ in passed:
            total = sum(amount for at, amount in passed if at >= start)
            assert total <= capacity + rate_per_s * (now - start) + 1e-6
