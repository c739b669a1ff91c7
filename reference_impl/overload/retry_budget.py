"""A bound on how much load retries may add.

Retries multiply load exactly when there is too much of it: with n attempts per request, a system that fails under a burst
keeps failing after the burst has gone (metastable failure). A budget bounds the multiplication instead of the attempts:
retries may be at most a fraction of recent requests, plus a small reserve so that a quiet client may retry at all.

The rule is Finagle's `RetryBudget` (Twitter): a window of `ttl_s`, credits that expire with it. The reserve is per second
and therefore weighs more the fewer the requests: load is multiplied by at most `1 + fraction + reserve_per_s / rate`
(2.2 at 10 requests/s under Finagle's own reserve of 10/s, hence the small default here).
"""

from __future__ import annotations

import msgspec

__all__ = ["RetryBudget", "RetryBudgetStatistics"]

_SLICES = 10


class RetryBudgetStatistics(msgspec.Struct, frozen=True):
    """Counts since the start, and the number of retries that would be granted at the instant asked for."""

    requests: int
    granted: int
    denied: int
    available: float


class RetryBudget:
    """Grants retries; `now` is the loop's time, which never runs backwards.

    Args:
        fraction: retries allowed for each request of the window (Finagle: 0.2).
        reserve_per_s: retries per second allowed beside it.
        ttl_s: length of the window (Finagle: 10 s), kept in ten slices.
    """

    def __init__(
        self, fraction: float = 0.2, reserve_per_s: float = 1.0, ttl_s: float = 10.0
    ) -> None:
        if fraction < 0 or reserve_per_s < 0 or ttl_s <= 0:
            raise ValueError(
                f"retry budget: fraction ({fraction}) and reserve_per_s ({reserve_per_s}) must not be negative, "
                f"ttl_s ({ttl_s}) must be positive"
            )
        self.fraction = fraction
        self.reserve = reserve_per_s * ttl_s
        self._slice_s = ttl_s / _SLICES
        self._slice = 0
        self._requests_in = [0] * _SLICES
        self._granted_in = [0] * _SLICES
        self._requests = 0
        self._granted = 0
        self._denied = 0

    def deposit(self, now: float) -> None:
        """Count one request (not its retries)."""
        self._advance(now)
        self._requests_in[self._slice % _SLICES] += 1
        self._requests += 1

    def try_withdraw(self, now: float) -> bool:
        """Take one retry if the budget has it; a denied retry must not be made."""
        # 1e-9: five requests at 0.2 earn one retry, whatever the rounding.
        if self.available(now) < 1.0 - 1e-9:
            self._denied += 1
            return False
        self._granted_in[self._slice % _SLICES] += 1
        self._granted += 1
        return True

    def available(self, now: float) -> float:
        """Retries that could be granted at `now`, as a real number."""
        self._advance(now)
        earned = self.reserve + self.fraction * sum(self._requests_in)
        return earned - sum(self._granted_in)

    def statistics(self, now: float) -> RetryBudgetStatistics:
        return RetryBudgetStatistics(
            requests=self._requests,
            granted=self._granted,
            denied=self._denied,
            available=self.available(now),
        )

    def _advance(self, now: float) -> None:
        current = int(now / self._slice_s)
        if current != self._slice:
            for passed in range(self._slice + 1, min(current, self._slice + _SLICES) + 1):
                self._requests_in[passed % _SLICES] = self._granted_in[passed % _SLICES] = 0
            self._slice = current
