"""The states of a circuit breaker."""

from __future__ import annotations

from typing import Any

import pytest

from reference_impl.overload.breaker import BreakerState, CircuitBreaker

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def breaker(**changes: Any) -> CircuitBreaker:
    options: dict[str, Any] = {
        "min_calls": 4,
        "failure_fraction": 0.5,
        "open_s": 5.0,
        "open_max_s": 15.0,
        "jitter": 0.0,
        "probes": 2,
    }
    return CircuitBreaker(**(options | changes))


def call(subject: CircuitBreaker, now: float, *, ok: bool, u: float = 0.5) -> None:
    permit = subject.try_acquire(now)
    assert permit
    if ok:
        subject.succeeded(permit, now)
    else:
        subject.failed(permit, now, u)


def opened(**changes: Any) -> CircuitBreaker:
    subject = breaker(**changes)
    for _ in range(4):
        call(subject, 0.0, ok=False)
    assert subject.state is OPEN
    return subject


def test_it_stays_closed_below_the_least_number_of_calls() -> None:
    subject = breaker()
    for _ in range(3):
        call(subject, 0.0, ok=False)
    assert subject.state is CLOSED


def test_it_opens_when_the_fraction_of_failures_is_reached() -> None:
    subject = breaker()
    for ok in (True, True, False):
        call(subject, 0.0, ok=ok)
    assert subject.state is CLOSED
    call(subject, 0.0, ok=False)
    assert subject.state is OPEN


def test_failures_in_a_row_open_it_after_any_number_of_successes() -> None:
    subject = breaker(max_failures_in_row=3)
    for _ in range(1000):
        call(subject, 0.0, ok=True)
    for ok in (False, False, True, False, False):
        call(subject, 0.1, ok=ok)
    assert subject.state is CLOSED
    call(subject, 0.1, ok=False)
    assert subject.state is OPEN


def test_failures_that_left_the_window_no_longer_count() -> None:
    subject = breaker(window_s=10.0)
    for _ in range(3):
        call(subject, 0.0, ok=False)
    for _ in range(4):
        call(subject, 10.5, ok=True)
    call(subject, 10.5, ok=False)
    assert subject.state is CLOSED
    assert subject.statistics().window_calls == 5


def test_an_open_breaker_refuses_and_says_how_long() -> None:
    subject = opened()
    assert subject.try_acquire(1.0) == 0
    assert subject.retry_after_s(1.0) == pytest.approx(4.0)
    assert subject.statistics().refused == 1


def test_when_the_time_has_come_it_lets_a_few_probes_through() -> None:
    subject = opened()
    assert subject.try_acquire(5.0)
    assert subject.try_acquire(5.0)
    assert not subject.try_acquire(5.0)
    assert subject.state is HALF_OPEN


def test_it_closes_after_enough_probes_succeeded() -> None:
    subject = opened()
    call(subject, 5.0, ok=True)
    assert subject.state is HALF_OPEN
    call(subject, 5.1, ok=True)
    assert subject.state is CLOSED
    # The failures of before are forgotten.
    call(subject, 5.2, ok=False)
    assert subject.state is CLOSED


def test_a_failed_probe_opens_it_for_twice_as_long_up_to_the_most() -> None:
    subject = opened()
    now = 0.0
    waits = []
    for _ in range(3):
        now += subject.retry_after_s(now)
        call(subject, now, ok=False)
        waits.append(subject.retry_after_s(now))
    assert waits == pytest.approx([10.0, 15.0, 15.0])


def test_after_it_closed_the_first_opening_is_short_again() -> None:
    subject = opened()
    call(subject, 5.0, ok=False)
    for _ in range(2):
        call(subject, 15.0, ok=True)
    for _ in range(4):
        call(subject, 16.0, ok=False)
    assert subject.retry_after_s(16.0) == pytest.approx(5.0)


@pytest.mark.parametrize(("u", "open_for_s"), [(0.0, 5.0), (0.5, 6.25), (1.0, 7.5)])
def test_the_time_open_is_stretched_by_the_jitter(u: float, open_for_s: float) -> None:
    subject = breaker(jitter=0.5)
    for _ in range(4):
        call(subject, 0.0, ok=False, u=u)
    assert subject.retry_after_s(0.0) == pytest.approx(open_for_s)


def test_an_abandoned_probe_gives_its_place_to_another() -> None:
    subject = opened(probes=1)
    permit = subject.try_acquire(5.0)
    assert not subject.try_acquire(5.0)
    subject.abandoned(permit)
    assert subject.try_acquire(5.0)


@pytest.mark.parametrize("ending", ["succeeded", "failed", "abandoned"])
def test_the_end_of_a_call_from_an_earlier_state_does_not_count(ending: str) -> None:
    subject = breaker(probes=2)
    early = subject.try_acquire(0.0)
    for _ in range(4):
        call(subject, 0.0, ok=False)
    first = subject.try_acquire(5.0)
    if ending == "succeeded":
        subject.succeeded(early, 5.0)
    elif ending == "failed":
        subject.failed(early, 5.0, 0.5)
    else:
        subject.abandoned(early)
    # One probe is out, so one more has room, and it takes both to close.
    second = subject.try_acquire(5.0)
    assert second
    assert not subject.try_acquire(5.0)
    subject.succeeded(first, 5.0)
    assert subject.state is HALF_OPEN
    subject.succeeded(second, 5.0)
    assert subject.state is CLOSED


def test_changes_of_state_are_reported_and_nothing_else() -> None:
    changes: list[tuple[float, BreakerState, BreakerState]] = []
    subject = breaker(on_change=lambda *change: changes.append(change))
    for _ in range(4):
        call(subject, 1.0, ok=False)
    for _ in range(10):
        subject.try_acquire(2.0)
    for _ in range(2):
        call(subject, 6.0, ok=True)
    assert changes == [(1.0, CLOSED, OPEN), (6.0, OPEN, HALF_OPEN), (6.0, HALF_OPEN, CLOSED)]


@pytest.mark.parametrize(
    ("option", "value"),
    [("failure_fraction", 0.0), ("failure_fraction", 1.5), ("min_calls", 0), ("open_s", 99.0)],
)
def test_impossible_settings_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        breaker(**{option: value})
