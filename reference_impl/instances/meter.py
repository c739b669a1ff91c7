"""Exact time integrals of one station, so that a sample costs a subtraction and not a poll.

Utilisation and mean queue length are integrals over time. Sampling them at instants would be biased by whatever runs at
those instants (a control loop, a heartbeat), so the station itself integrates at every change, on the loop's clock.
"""

from __future__ import annotations

import asyncio

from reference_impl.telemetry import StationSample

__all__ = ["StationMeter"]


class StationMeter:
    """Counts arrivals and completions of a station; integrates how many are served and how many wait.

    Must be made on the running loop, whose clock it reads. One reader takes the samples.
    """

    __slots__ = (
        "_busy_integral_s",
        "_changed_s",
        "_marked",
        "_time",
        "_waiting_integral_s",
        "arrivals",
        "busy",
        "capacity",
        "completions",
        "kind",
        "station",
        "waiting",
    )

    def __init__(self, station: str, kind: str, capacity: float) -> None:
        self.station = station
        self.kind = kind
        self.capacity = capacity
        self.arrivals = 0
        self.completions = 0
        self.busy = 0
        self.waiting = 0
        self._time = asyncio.get_running_loop().time
        self._changed_s = self._time()
        self._busy_integral_s = 0.0
        self._waiting_integral_s = 0.0
        # At the last sample: instant, arrivals, completions, both integrals.
        self._marked = (self._changed_s, 0, 0, 0.0, 0.0)

    def advance(self) -> None:
        """Integrate up to now; to be called before `busy` or `waiting` changes."""
        now_s = self._time()
        elapsed_s = now_s - self._changed_s
        if elapsed_s > 0.0:
            self._busy_integral_s += elapsed_s * self.busy
            self._waiting_integral_s += elapsed_s * self.waiting
            self._changed_s = now_s

    @property
    def busy_s(self) -> float:
        """Integral of the number in service since the start, in seconds."""
        self.advance()
        return self._busy_integral_s

    @property
    def waiting_s(self) -> float:
        """Integral of the number waiting since the start, in seconds."""
        self.advance()
        return self._waiting_integral_s

    def sample(self, *, origin_s: float = 0.0) -> StationSample:
        """The interval since the last sample (or the start), ending now.

        `origin_s`: the run's start on the loop's clock; the sample's instant counts from it.
        """
        self.advance()
        now_s = self._changed_s
        from_s, arrivals, completions, busy_s, waiting_s = self._marked
        interval_s = now_s - from_s
        self._marked = (
            now_s,
            self.arrivals,
            self.completions,
            self._busy_integral_s,
            self._waiting_integral_s,
        )
        busy_in_interval_s = self._busy_integral_s - busy_s
        waiting_in_interval_s = self._waiting_integral_s - waiting_s
        return StationSample(
            t_s=now_s - origin_s,
            interval_s=interval_s,
            station=self.station,
            kind=self.kind,
            arrivals=self.arrivals - arrivals,
            completions=self.completions - completions,
            busy_s=busy_in_interval_s,
            queue_length=waiting_in_interval_s / interval_s if interval_s > 0 else self.waiting,
            in_service=busy_in_interval_s / interval_s if interval_s > 0 else self.busy,
            capacity=self.capacity,
        )
