"""The token bucket: a rate that may be exceeded by a burst, and only by that burst.

Tokens arrive continuously at `rate_per_s` up to `capacity`; work takes some. Over any interval of t seconds it lets at most
`capacity + rate_per_s * t` through (the bound of a leaky bucket, Cruz 1991; the Messages API limits requests and tokens so).
"""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """Pure policy; `now` is the loop's time, which never runs backwards. Starts full.

    Args:
        rate_per_s: tokens that arrive per second.
        capacity: the most that it holds.
    """

    __slots__ = ("_level", "_updated_s", "capacity", "rate_per_s")

    def __init__(self, rate_per_s: float, capacity: float) -> None:
        if not (rate_per_s > 0 and capacity > 0):
            raise ValueError(
                f"token bucket: rate_per_s ({rate_per_s}) and capacity ({capacity}) must be positive"
            )
        self.rate_per_s = rate_per_s
        self.capacity = capacity
        self._level = capacity
        self._updated_s = 0.0

    def level(self, now: float) -> float:
        """Tokens held at `now`; negative while it is in debt."""
        passed_s = now - self._updated_s
        if passed_s > 0:
            self._level = min(self.capacity, self._level + passed_s * self.rate_per_s)
            self._updated_s = now
        return self._level

    def try_take(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount` if it is there."""
        if self.level(now) < amount:
            return False
        self._level -= amount
        return True

    def take(self, now: float, amount: float = 1.0) -> None:
        """Take `amount` whether it is there or not: the debt delays whoever comes next.

        A negative amount gives back (an estimate that proved too high), up to the capacity.
        """
        self._level = min(self.capacity, self.level(now) - amount)

    def wait_s(self, now: float, amount: float = 1.0) -> float:
        """Seconds until `amount` will be there, if nobody else takes.

        Raises ValueError for an amount beyond the capacity: it will never be there.
        """
        if amount > self.capacity:
            raise ValueError(
                f"token bucket: {amount} tokens asked for, but it never holds more than {self.capacity}"
            )
        return max(0.0, (amount - self.level(now)) / self.rate_per_s)
