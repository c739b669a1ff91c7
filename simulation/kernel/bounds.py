"""The bounds that a caller sets to a run: events, wall-clock time and virtual time."""

import math
from collections.abc import Callable

from simulation.kernel.errors import LimitExceeded, Stopped

EVENTS_BETWEEN_CLOCK_READINGS = 4096


class Bounds:
    """Bounds of one run. The wall clock is the caller's: the kernel reads none of its own."""

    def __init__(
        self,
        max_events: int | None = None,
        wall_clock_limit_s: float | None = None,
        clock: Callable[[], float] | None = None,
        until: float | None = None,
    ) -> None:
        if wall_clock_limit_s is not None and clock is None:
            raise ValueError("wall_clock_limit_s needs clock=, for example clock=time.monotonic")
        if until is not None and math.isnan(until):
            raise ValueError("until must be an instant in seconds, not nan")
        self.until = math.inf if until is None else until
        self._max_events = math.inf if max_events is None else max_events
        self._too_many = f"max_events={max_events} callbacks and events have run"
        self._clock = clock if wall_clock_limit_s is not None else None
        self._limit_s = wall_clock_limit_s or 0.0
        self._started = self._clock() if self._clock is not None else 0.0

    def check(self, events: int, now: float) -> float:
        """Return the number of events at which to check again.

        Raises:
            Stopped: a bound is reached; carries LimitExceeded.
        """
        if events >= self._max_events:
            raise Stopped(LimitExceeded(f"{self._too_many} at {now:g} s"))
        if self._clock is None:
            return self._max_events
        if self._clock() - self._started >= self._limit_s:
            raise Stopped(
                LimitExceeded(f"wall_clock_limit_s={self._limit_s:g} is over at {now:g} s")
            )
        return min(self._max_events, events + EVENTS_BETWEEN_CLOCK_READINGS)

    def replace_for_clean_up(self, max_events: int) -> None:
        """Lift the bounds but for a number of events: cancelled tasks must come to an end."""
        self.until = math.inf
        self._max_events = max_events
        self._too_many = f"tasks go on although they were cancelled: {max_events} callbacks"
        self._clock = None
