"""Questions to a store that may be away: bounded in time, refused at once by a breaker, each change of state said once.

The bound is per look-up, not per question: whoever has waited for the store as long as stated goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from reference_impl.caches.port import CacheError, StoreRefused, StoreUnavailable
from reference_impl.overload.breaker import BreakerState, CircuitBreaker
from reference_impl.overload.jitter import Uniform, hashed_uniform

__all__ = ["Budget", "MakeBreaker", "OnBreakerChange", "StoreGuard", "default_breaker"]

R = TypeVar("R")
OnBreakerChange = Callable[[float, BreakerState, BreakerState], None]
MakeBreaker = Callable[[OnBreakerChange], CircuitBreaker]

logger = logging.getLogger(__name__)


class Budget:
    """The seconds that somebody may still wait for the store."""

    __slots__ = ("remaining_s",)

    def __init__(self, remaining_s: float) -> None:
        self.remaining_s = remaining_s


def default_breaker(on_change: OnBreakerChange) -> CircuitBreaker:
    """Opens after five failures in a row, or when half of the last ten seconds failed; probes from a second on."""
    return CircuitBreaker(
        max_failures_in_row=5, open_s=1.0, open_max_s=10.0, probes=2, on_change=on_change
    )


class StoreGuard:
    """The only way to the store of process `name`; see `SharedLevel` for the arguments."""

    def __init__(
        self,
        name: str,
        *,
        timeout_s: float,
        make_breaker: MakeBreaker = default_breaker,
        uniform: Uniform | None = None,
        on_breaker_change: OnBreakerChange | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self.skipped = self.errors = self.timeouts = 0
        self._luck = f"cache breaker {name}"
        self._breaker = make_breaker(self._breaker_changed)
        self._uniform = hashed_uniform(0) if uniform is None else uniform
        self._on_breaker_change = on_breaker_change
        self._paused_until_s = -math.inf
        self._last_error = ""
        self._warned: set[str] = set()

    @property
    def state(self) -> BreakerState:
        return self._breaker.state

    async def ask(self, operation: Callable[[], Awaitable[R]], budget: Budget | None = None) -> R:
        """Await `operation()` within `budget`, by default a whole time-out. Raises only StoreUnavailable."""
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        if budget is None:
            budget = Budget(self.timeout_s)
        may_ask = budget.remaining_s > 0 and asked_s >= self._paused_until_s
        permit = self._breaker.try_acquire(asked_s) if may_ask else 0
        if not permit:
            raise self.skip("no time left, a pause after a time-out, or the breaker is open")
        try:
            async with asyncio.timeout_at(asked_s + budget.remaining_s):
                answer = await operation()
        except StoreRefused as error:
            budget.remaining_s = 0.0
            self.errors += 1
            self._breaker.succeeded(permit, loop.time())
            self.warn_once("refused", error)
            raise
        except (StoreUnavailable, TimeoutError) as error:
            budget.remaining_s = 0.0
            raise self._failed(permit, loop.time(), asked_s, error) from error
        except BaseException:
            self._breaker.abandoned(permit)
            raise
        now_s = loop.time()
        budget.remaining_s -= now_s - asked_s
        self._breaker.succeeded(permit, now_s)
        return answer

    def skip(self, why: str) -> StoreUnavailable:
        """The error of a question that is not asked."""
        self.skipped += 1
        return StoreUnavailable(f"not asked: {why}")

    def warn_once(self, subject: str, error: CacheError) -> None:
        """Log what kept something from being shared, once for each `subject`."""
        if subject not in self._warned:
            self._warned.add(subject)
            logger.warning("not shared: %s", error)

    def _failed(
        self, permit: int, now_s: float, asked_s: float, error: Exception
    ) -> StoreUnavailable:
        self.errors += 1
        if isinstance(error, TimeoutError):
            self.timeouts += 1
            # Who has just waited in vain, and everyone else, goes on at once instead of waiting in vain again.
            self._paused_until_s = now_s + self.timeout_s
            failure = StoreUnavailable(f"no answer within {now_s - asked_s:.3f} s")
        else:
            failure = StoreUnavailable(str(error))
        self._last_error = str(failure)
        openings = self._breaker.statistics().openings
        self._breaker.failed(permit, now_s, self._uniform(self._luck, openings, 0))
        return failure

    def _breaker_changed(self, now_s: float, old: BreakerState, new: BreakerState) -> None:
        if new is BreakerState.OPEN and old is BreakerState.CLOSED:
            logger.warning(
                "cache store away (%s): going on without it, asking again in %.1f s",
                self._last_error,
                self._breaker.retry_after_s(now_s),
            )
        elif new is BreakerState.CLOSED:
            logger.warning("cache store is back")
        if self._on_breaker_change is not None:
            self._on_breaker_change(now_s, old, new)
