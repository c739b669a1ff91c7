"""What a scaling policy sees, and what it is: a pure function from an observation to a number of instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from reference_impl.instances.port import InstanceMetrics, InstanceStatus

__all__ = ["Observation", "ScalingPolicy"]


class Observation(msgspec.Struct, frozen=True):
    """The fleet at one decision.

    `ordered` instances take calls or will, `booting` of them do not yet. `reporting` sent fresh metrics; `cpu_usage` and
    `error_rate` (fractions of 1) are the means over these, errors weighted by throughput. `in_flight` counts all calls.
    """

    ordered: int
    booting: int
    reporting: int
    in_flight: int
    cpu_usage: float
    error_rate: float

    @classmethod
    def of(cls, metrics: Sequence[InstanceMetrics], ordered: int, booting: int = 0) -> Observation:
        """Sum up the reports; UNHEALTHY ones are stale, so only their calls in flight count."""
        fresh = [m for m in metrics if m.status is not InstanceStatus.UNHEALTHY]
        calls_per_s = sum(m.throughput for m in fresh)
        if calls_per_s > 0:
            error_rate = sum(m.error_rate * m.throughput for m in fresh) / calls_per_s
        else:
            error_rate = sum(m.error_rate for m in fresh) / max(1, len(fresh))
        return cls(
            ordered=ordered,
            booting=booting,
            reporting=len(fresh),
            in_flight=sum(m.in_flight for m in metrics),
            cpu_usage=sum(m.cpu_usage for m in fresh) / max(1, len(fresh)),
            error_rate=error_rate,
        )


class ScalingPolicy(Protocol):
    """A rule. Bounds, stabilisation and memory are the AutoScaler's."""

    def recommend(self, observation: Observation) -> int:
        """How many instances there should be; the bounds are not applied yet."""
        ...
