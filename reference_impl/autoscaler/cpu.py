"""Thresholds on CPU and errors: quick up by two, slow down by one."""

from __future__ import annotations

import msgspec

from reference_impl.autoscaler.port import Observation

__all__ = ["CpuPolicy"]


class CpuPolicy(msgspec.Struct, frozen=True):
    """CPU above `cpu_threshold` or errors above `error_threshold`: `step_up` more. Both low: `step_down` fewer.

    While ordered instances still boot, they count as idle (as in the Kubernetes HPA), errors order no more of them, and
    none is taken away: else each interval of a long boot would repeat the same order. Usages are fractions of 1.
    """

    cpu_threshold: float = 0.8
    error_threshold: float = 0.05
    idle_cpu: float = 0.2
    idle_errors: float = 0.01
    step_up: int = 2
    step_down: int = 1

    def recommend(self, observation: Observation) -> int:
        ordered, booting = observation.ordered, observation.booting
        if observation.reporting == 0:
            return ordered
        spread = observation.reporting / (observation.reporting + booting)
        if observation.cpu_usage * spread > self.cpu_threshold:
            return ordered + self.step_up
        if booting:
            return ordered
        if observation.error_rate > self.error_threshold:
            return ordered + self.step_up
        if observation.cpu_usage < self.idle_cpu and observation.error_rate < self.idle_errors:
            return ordered - self.step_down
        return ordered
