"""What is looked at in a replication, and how far the mean of the replications is from the exact value.

Every observable is a ratio of two sums over a stationary window, as (total, count): of latencies over requests, of losses
over arrivals. If theta is the true ratio then total - theta * count has mean 0 in every replication, whatever its length,
so z = mean / standard error of these differences has no bias of a ratio in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import yaml

from reference_impl.telemetry import RequestRecord, StationSample, SystemEvent
from simulation.scenario.spec import load_scenario
from simulation.scenario.workload import compile_workload
from simulation.world import simulate

__all__ = ["SYSTEMS", "Estimate", "Observable", "Replication", "estimate", "replicate"]

SYSTEMS: dict[str, dict[str, object]] = yaml.safe_load(
    (Path(__file__).parent / "systems.yaml").read_text("utf-8")
)


class Replication:
    """The requests intended in the window, and all events. A sink of `simulate`."""

    def __init__(self, from_s: float, until_s: float) -> None:
        self.window_s = until_s - from_s
        self.requests: list[RequestRecord] = []
        self.events: list[SystemEvent] = []
        self._from_s = from_s
        self._until_s = until_s

    def request(self, record: RequestRecord, /) -> None:
        if self._from_s <= record.intended_s < self._until_s:
            self.requests.append(record)

    def station(self, sample: StationSample, /) -> None:
        """Requests and events say all that is asked for."""

    def event(self, event: SystemEvent, /) -> None:
        self.events.append(event)


Observable = Callable[[Replication], tuple[float, float]]


@dataclass(frozen=True)
class Estimate:
    """The mean over replications of one observable beside its exact value."""

    exact: float
    found: float
    standard_error: float
    z: float
    observations: int


def replicate(
    system: str, seed: int, *, from_s: float, until_s: float, horizon_s: float
) -> Replication:
    """One run of the named system."""
    scenario = load_scenario(
        "mm1", {**SYSTEMS[system], "horizon_s": horizon_s, "seed": seed, "sample_interval_s": 1e6}
    )
    replication = Replication(from_s, until_s)
    simulate(scenario, compile_workload(scenario), replication)
    return replication


def estimate(exact: float, pairs: list[tuple[float, float]]) -> Estimate:
    """From each replication's (total, count); at least two of them, and some spread."""
    totals, counts = math.fsum(t for t, _ in pairs), math.fsum(c for _, c in pairs)
    differences = [total - exact * count for total, count in pairs]
    error = stdev(differences) / math.sqrt(len(pairs))
    return Estimate(
        exact=exact,
        found=totals / counts,
        standard_error=error / (counts / len(pairs)),
        z=fmean(differences) / error,
        observations=round(counts),
    )
