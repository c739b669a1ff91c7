"""A target of calls in flight per instance: what LLM work uses up, as waiting for an endpoint takes no CPU."""

from __future__ import annotations

import math

import msgspec

from reference_impl.autoscaler.port import Observation

__all__ = ["ConcurrencyPolicy"]


class ConcurrencyPolicy(msgspec.Struct, frozen=True):
    """`ceil(in flight / target)`, held while the ratio of the load to the target is within `tolerance` of 1.

    The algorithm of the Kubernetes HPA (documentation, "Algorithm details"): the ratio is taken over the ready instances;
    when that asks for more, booting ones are added as idle, and the number is held if the ratio is then back inside the
    tolerance or has changed direction. So a boot that takes many intervals is ordered once.
    """

    target_in_flight: float = 10.0
    tolerance: float = 0.1

    def recommend(self, observation: Observation) -> int:
        ordered = observation.ordered
        ready = ordered - observation.booting
        if ready <= 0:
            return ordered  # nothing is measured before the first is ready
        wanted = observation.in_flight / self.target_in_flight
        if abs(wanted / ready - 1.0) <= self.tolerance:
            return ordered
        if wanted > ready and wanted / ordered <= 1.0 + self.tolerance:
            return ordered
        return math.ceil(wanted)
