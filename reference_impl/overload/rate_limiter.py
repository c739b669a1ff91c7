"""Waiting for a token bucket, first come, first served."""

from __future__ import annotations

import asyncio

import msgspec

from reference_impl.overload.token_bucket import TokenBucket

__all__ = ["RateLimiter", "RateLimiterStatistics"]


class RateLimiterStatistics(msgspec.Struct, frozen=True):
    """Callers that passed since the start, those that wait now, and the seconds that those who passed had waited."""

    passed: int
    waiting: int
    waited_s: float


class RateLimiter:
    """Paces its callers on the loop's clock.

    Args:
        rate_per_s: sustained rate.
        burst: how many may pass at once after a pause (1: evenly paced).
    """

    def __init__(self, rate_per_s: float, burst: float = 1.0) -> None:
        self._bucket = TokenBucket(rate_per_s, burst)
        self._turn = asyncio.Lock()
        self._passed = 0
        self._waiting = 0
        self._waited_s = 0.0

    async def acquire(self, amount: float = 1.0) -> None:
        """Wait for `amount` of the rate. A cancelled waiter takes nothing and loses its place."""
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        self._waiting += 1
        try:
            async with self._turn:
                wait_s = self._bucket.wait_s(loop.time(), amount)
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                # Unconditionally: a timer that fires a trifle early leaves a debt that the next caller waits off,
                # where a second check would spin on a remainder too small to move the clock.
                now = loop.time()
                self._bucket.take(now, amount)
        finally:
            self._waiting -= 1
        self._passed += 1
        self._waited_s += now - arrived_s

    def statistics(self) -> RateLimiterStatistics:
        return RateLimiterStatistics(self._passed, self._waiting, self._waited_s)
