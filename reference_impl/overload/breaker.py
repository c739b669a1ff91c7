"""A circuit breaker: stop calling a peer that fails, and find out gently when it is well again.

Closed, calls pass and their results are counted. When the failures in the window are too many, it opens: calls are refused
at once, which spares the caller its time-outs and the peer its load. After a while it is half open: a few probes pass; if
they succeed it closes, if one fails it opens again, for longer. The time that it stays open is jittered, so that the
breakers of many instances do not probe a sick peer together (M. Nygard, "Release It!"; the window and the volume
threshold as in Hystrix and resilience4j, longer openings after each failed probe as in Envoy's ejection).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import msgspec

__all__ = ["BreakerState", "BreakerStatistics", "CircuitBreaker"]

_SLICES = 10


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerStatistics(msgspec.Struct, frozen=True):
    """The state, how often it opened since the start, calls refused, and the calls in the present window."""

    state: BreakerState
    openings: int
    refused: int
    window_calls: int
    window_failures: int


class CircuitBreaker:
    """Refuses calls to a failing peer.

    `try_acquire` gives a permit; exactly one of `succeeded`, `failed` and `abandoned` takes it back. A permit of an earlier
    state (a call that began before the breaker opened and ends while it probes) no longer counts for anything.

    Args:
        failure_fraction: opens when at least this fraction of the window's calls failed ...
        min_calls: ... and the window has at least this many calls.
        max_failures_in_row: opens, whatever the window says, after so many failures without a success between them;
            a peer that is gone shows at once even after a second of thousands of successes. None: only the window counts.
        window_s: length of the window, kept in ten slices.
        open_s: how long it stays open the first time; doubled after each failed probe, at most `open_max_s`, and
            multiplied by 1 + `jitter` * u with u the uniform handed to `failed`.
        probes: calls let through at once while half open, and successes needed to close.
        on_change: called with (now, old state, new state) at each change of state, and for nothing else.
    """

    def __init__(
        self,
        *,
        failure_fraction: float = 0.5,
        min_calls: int = 20,
        max_failures_in_row: int | None = None,
        window_s: float = 10.0,
        open_s: float = 5.0,
        open_max_s: float = 60.0,
        jitter: float = 0.5,
        probes: int = 3,
        on_change: Callable[[float, BreakerState, BreakerState], None] | None = None,
    ) -> None:
        if not 0 < failure_fraction <= 1:
            raise ValueError(f"breaker: failure_fraction must be in (0, 1], not {failure_fraction}")
        if max_failures_in_row is not None and max_failures_in_row < 1:
            raise ValueError(
                f"breaker: max_failures_in_row must be at least 1, not {max_failures_in_row}"
            )
        if min_calls < 1 or probes < 1:
            raise ValueError(
                f"breaker: min_calls ({min_calls}) and probes ({probes}) must be at least 1"
            )
        if not (window_s > 0 and 0 < open_s <= open_max_s and jitter >= 0):
            raise ValueError(
                f"breaker: window_s ({window_s}) must be positive, 0 < open_s ({open_s}) <= open_max_s "
                f"({open_max_s}), and jitter ({jitter}) not negative"
            )
        self._failure_fraction = failure_fraction
        self._min_calls = min_calls
        self._max_failures_in_row = max_failures_in_row
        self._failures_in_row = 0
        self._slice_s = window_s / _SLICES
        self._open_s = open_s
        self._open_max_s = open_max_s
        self._jitter = jitter
        self._probes = probes
        self._on_change = on_change
        self._state = BreakerState.CLOSED
        self._slice = 0
        self._calls_in = [0] * _SLICES
        self._failures_in = [0] * _SLICES
        self._epoch = 1
        self._opens_for_s = open_s
        self._half_open_at_s = 0.0
        self._probes_out = 0
        self._probes_passed = 0
        self._openings = 0
        self._refused = 0

    @property
    def state(self) -> BreakerState:
        """The state as of the last call; an open breaker becomes half open at the first `try_acquire` that is due."""
        return self._state

    def retry_after_s(self, now: float) -> float:
        """Seconds until the next probe may pass (0 when it is not open)."""
        if self._state is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self._half_open_at_s - now)

    def try_acquire(self, now: float) -> int:
        """A permit for one call at `now`, or 0 when the call must not be made."""
        if self._state is BreakerState.CLOSED:
            return self._epoch
        if self._state is BreakerState.OPEN and now >= self._half_open_at_s:
            self._probes_out = self._probes_passed = 0
            self._change(now, BreakerState.HALF_OPEN)
        if self._state is BreakerState.HALF_OPEN and (
            self._probes_out + self._probes_passed < self._probes
        ):
            self._probes_out += 1
            return self._epoch
        self._refused += 1
        return 0

    def succeeded(self, permit: int, now: float) -> None:
        """The call was answered; an answer that refuses the request (4xx) is a success of the peer."""
        if permit != self._epoch:
            return
        if self._state is BreakerState.CLOSED:
            self._failures_in_row = 0
            self._count(now, failures=0)
            return
        self._probes_out -= 1
        self._probes_passed += 1
        if self._probes_passed >= self._probes:
            self._calls_in = [0] * _SLICES
            self._failures_in = [0] * _SLICES
            self._failures_in_row = 0
            self._opens_for_s = self._open_s
            self._change(now, BreakerState.CLOSED)

    def failed(self, permit: int, now: float, u: float) -> None:
        """The peer failed; `u` in (0, 1) jitters the opening that this may cause."""
        if permit != self._epoch:
            return
        if self._state is BreakerState.CLOSED:
            self._failures_in_row += 1
            self._count(now, failures=1)
            calls = sum(self._calls_in)
            failures = sum(self._failures_in)
            if self._failures_in_row == self._max_failures_in_row or (
                calls >= self._min_calls and failures >= self._failure_fraction * calls
            ):
                self._open(now, u)
        else:
            self._opens_for_s = min(2 * self._opens_for_s, self._open_max_s)
            self._open(now, u)

    def abandoned(self, permit: int) -> None:
        """The caller gave the call up before it told anything about the peer."""
        if permit == self._epoch and self._state is BreakerState.HALF_OPEN:
            self._probes_out -= 1

    def statistics(self) -> BreakerStatistics:
        return BreakerStatistics(
            state=self._state,
            openings=self._openings,
            refused=self._refused,
            window_calls=sum(self._calls_in),
            window_failures=sum(self._failures_in),
        )

    def _open(self, now: float, u: float) -> None:
        self._half_open_at_s = now + self._opens_for_s * (1.0 + self._jitter * u)
        self._openings += 1
        self._change(now, BreakerState.OPEN)

    def _change(self, now: float, state: BreakerState) -> None:
        old, self._state = self._state, state
        self._epoch += 1
        if self._on_change is not None:
            self._on_change(now, old, state)

    def _count(self, now: float, failures: int) -> None:
        current = int(now / self._slice_s)
        if current != self._slice:
            for passed in range(self._slice + 1, min(current, self._slice + _SLICES) + 1):
                self._calls_in[passed % _SLICES] = self._failures_in[passed % _SLICES] = 0
            self._slice = current
        self._calls_in[current % _SLICES] += 1
        self._failures_in[current % _SLICES] += failures
