"""What an instance knows of its own calls, and the `InstanceMetrics` made of it.

Counts are kept in a sliding window that is as long as the readers' interval, not in the last heartbeat's: at two calls a
second one failure in a one-second window would read as an error rate of 50%.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from reference_impl.instances.port import InstanceMetrics, InstanceStatus

__all__ = ["InstanceMonitor"]


class _Totals(NamedTuple):
    """Running totals at one instant."""

    at_s: float
    calls: int
    errors: int
    own_faults: int
    latency_s: float
    timed: int


class InstanceMonitor:
    """Counts calls, errors and latency; `snapshot` reports the last `window_s` seconds.

    An instance calls itself DEGRADED when at least `min_calls` calls ended in the window and `degraded_at` of them by its
    own faults (no connection, an unexpected exception). Errors that the endpoint answered are no sign of a bad instance:
    all would be marked, or by chance all but one, which would then get everything. UNHEALTHY is for others to say: a
    sick instance may not be able to.
    """

    def __init__(
        self,
        instance_id: str,
        started_s: float,
        *,
        window_s: float = 5.0,
        degraded_at: float = 0.9,
        min_calls: int = 10,
    ) -> None:
        self.instance_id = instance_id
        self._window_s = window_s
        self._degraded_at = degraded_at
        self._min_calls = min_calls
        self._calls = 0
        self._errors = 0
        self._own_faults = 0
        self._latency_s = 0.0
        self._timed = 0
        # Totals at past snapshots; the first is the youngest that is at least a window old (or the start).
        self._marks = deque([_Totals(started_s, 0, 0, 0, 0.0, 0)])

    def observe(self, latency_s: float, *, ok: bool, own_fault: bool = False) -> None:
        """A call that was admitted has ended after `latency_s`."""
        self._calls += 1
        self._latency_s += latency_s
        self._timed += 1
        if not ok:
            self._errors += 1
        if own_fault:
            self._own_faults += 1

    def rejected(self) -> None:
        """A call was turned away: an error without a latency (zeros would make an overload look fast)."""
        self._calls += 1
        self._errors += 1

    def snapshot(
        self,
        now_s: float,
        *,
        cpu_usage: float = 0.0,
        memory_usage: float = 0.0,
        in_flight: int = 0,
        capacity: int = 0,
        weight: float = 1.0,
    ) -> InstanceMetrics:
        """The report of the window that ends at `now_s` (the loop's clock); usages are fractions of 1."""
        marks = self._marks
        while len(marks) > 1 and marks[1].at_s <= now_s - self._window_s:
            marks.popleft()
        since = marks[0]
        calls = self._calls - since.calls
        timed = self._timed - since.timed
        elapsed_s = now_s - since.at_s
        degraded = (
            calls >= self._min_calls
            and self._own_faults - since.own_faults >= self._degraded_at * calls
        )
        metrics = InstanceMetrics(
            instance_id=self.instance_id,
            status=InstanceStatus.DEGRADED if degraded else InstanceStatus.HEALTHY,
            latency_ms=1000 * (self._latency_s - since.latency_s) / timed if timed else 0.0,
            error_rate=(self._errors - since.errors) / calls if calls else 0.0,
            throughput=calls / elapsed_s if elapsed_s > 0 else 0.0,
            memory_usage=memory_usage,
            cpu_usage=cpu_usage,
            in_flight=in_flight,
            capacity=capacity,
            weight=weight,
        )
        marks.append(
            _Totals(
                now_s, self._calls, self._errors, self._own_faults, self._latency_s, self._timed
            )
        )
        return metrics
