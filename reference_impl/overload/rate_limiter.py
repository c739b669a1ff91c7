"""Waiting for a token bucket, first come, first served."""

from __future__ import annotations

import asyncio

from reference_impl.overload.token_bucket import TokenBucket

__all__ = ["RateLimiter"]


class RateLimiter:
    """Paces its callers on the loop's clock.

    Args:
        rate_per_s: sustained rate.
        burst: how many may pass at once after a pause (1: evenly paced).
    """

    def __init__(self, rate_per_s: float, burst: float = 1.0) -> None:
        self._bucket = TokenBucket(rate_per_s, burst)
        self._turn = asyncio.Lock()

    async def acquire(self, amount: float = 1.0) -> None:
        """Wait for `amount` of the rate. A cancelled waiter takes nothing and loses its place."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            wait_s = self._bucket.wait_s(loop.time(), amount)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            # Unconditionally: a timer that fires a trifle early leaves a debt that the next caller waits off,
            # where a second check would spin on a remainder too small to move the clock.
            self._bucket.take(loop.time(), amount)
