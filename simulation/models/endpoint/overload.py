"""Refusals that depend on load: the endpoint as a whole has too much to do (529).

In flight is counted by planned ends, not by observed ones, so that replayed arrivals meet the same decisions.
"""

from __future__ import annotations

import heapq

from simulation.scenario.endpoint import OverloadSpec

__all__ = ["OverloadModel"]


class OverloadModel:
    """The chance of refusal rises linearly from 0 at the onset to 1 at capacity."""

    def __init__(self, spec: OverloadSpec) -> None:
        self._spec = spec
        self._ends_s: list[float] = []

    def in_flight(self, now: float) -> int:
        """Calls that were admitted and are planned to end after `now`."""
        while self._ends_s and self._ends_s[0] <= now:
            heapq.heappop(self._ends_s)
        return len(self._ends_s)

    def refuses(self, luck: float, now: float) -> bool:
        """Whether a call with this uniform is turned away."""
        load = self.in_flight(now) / self._spec.capacity_in_flight
        chance = (load - self._spec.onset) / (1.0 - self._spec.onset)
        return luck < max(chance, self._spec.background)

    def admitted(self, ends_s: float) -> None:
        heapq.heappush(self._ends_s, ends_s)

    def left(self, ends_s: float) -> None:
        """A call with this planned end was abandoned."""
        try:
            self._ends_s.remove(ends_s)
        except ValueError:
            return  # it has ended meanwhile
        heapq.heapify(self._ends_s)
