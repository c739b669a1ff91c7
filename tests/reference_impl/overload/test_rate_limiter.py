"""Callers that wait for a rate, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from reference_impl.overload.rate_limiter import RateLimiter, RateLimiterStatistics
from simulation.kernel import run


async def passing_times(limiter: RateLimiter, callers: int) -> list[tuple[int, float]]:
    loop = asyncio.get_running_loop()
    passed: list[tuple[int, float]] = []

    async def caller(index: int) -> None:
        await limiter.acquire()
        passed.append((index, loop.time()))

    await asyncio.gather(*(caller(i) for i in range(callers)))
    return passed


def test_callers_pass_in_order_evenly_paced() -> None:
    passed = run(passing_times(RateLimiter(rate_per_s=10.0), 5))
    assert [index for index, _ in passed] == [0, 1, 2, 3, 4]
    assert [at for _, at in passed] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_a_burst_passes_at_once_and_the_rest_at_the_rate() -> None:
    passed = run(passing_times(RateLimiter(rate_per_s=10.0, burst=3.0), 5))
    assert [at for _, at in passed] == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.2])


def test_the_rate_does_not_drift_over_many_callers() -> None:
    passed = run(passing_times(RateLimiter(rate_per_s=3.0), 3001))
    assert passed[-1][1] == pytest.approx(1000.0, rel=1e-9)


def test_a_caller_that_gives_up_takes_nothing() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(rate_per_s=1.0)
        await limiter.acquire()
        impatient = asyncio.create_task(limiter.acquire())
        patient = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0.5)
        impatient.cancel()
        await patient
        first_s = loop.time()
        await limiter.acquire()
        return [first_s, loop.time()]

    assert run(main()) == pytest.approx([1.0, 2.0])


def test_statistics_tell_who_passed_who_waits_and_for_how_long() -> None:
    async def main() -> list[RateLimiterStatistics]:
        limiter = RateLimiter(rate_per_s=1.0)
        callers = [asyncio.create_task(limiter.acquire()) for _ in range(3)]
        await asyncio.sleep(1.5)
        midway = limiter.statistics()
        await asyncio.gather(*callers)
        return [midway, limiter.statistics()]

    assert run(main()) == [
        RateLimiterStatistics(passed=2, waiting=1, waited_s=1.0),
        RateLimiterStatistics(passed=3, waiting=0, waited_s=3.0),
    ]
