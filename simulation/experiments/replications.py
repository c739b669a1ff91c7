"""`replications`: one scenario with seed after seed, until its figures are known well enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from simulation.experiments.errors import ExperimentError
from simulation.experiments.frames import frame_of
from simulation.experiments.job import DEFAULT_MAX_EVENTS, WarmUpRule, make_job
from simulation.experiments.measuring import Row, check_metric, number_of
from simulation.experiments.points import seeds
from simulation.experiments.runner import JobRunner
from simulation.scenario.arrival_spec import (
    DiurnalArrivals,
    PiecewiseArrivals,
    TraceArrivals,
)
from simulation.scenario.schema import Scenario
from simulation.statistics import Precision, relative_precision

__all__ = ["MINIMUM", "Replications", "default_warm_up", "replicate", "shown_metrics"]

MINIMUM: Final = 10


@dataclass(frozen=True)
class Replications:
    """The runs (one row each) and, for each metric asked for, how well its mean over runs is known.

    `reached`: all of them within the precision. `settled`: MSER-5 found a steady state in every run.
    """

    runs: pd.DataFrame
    precisions: dict[str, Precision]
    warm_up: WarmUpRule

    @property
    def reached(self) -> bool:
        return all(p.reached for p in self.precisions.values())

    @property
    def settled(self) -> bool:
        return bool(self.runs["settled"].all())


def default_warm_up(scenario: Scenario) -> WarmUpRule:
    """MSER-5 where there is a steady state to wait for; nothing is left out of a load or a world that changes by plan."""
    changing = (DiurnalArrivals, PiecewiseArrivals, TraceArrivals)
    planned = isinstance(scenario.workload.arrivals, changing) or bool(scenario.faults)
    return 0.0 if planned else "mser5"


def replicate(
    scenario: Scenario,
    runner: JobRunner,
    *,
    metrics: Sequence[str] = ("latency_mean_s",),
    precision: float = 0.05,
    confidence: float = 0.95,
    maximum: int = 200,
    warm_up: WarmUpRule | None = None,
    max_events: int = DEFAULT_MAX_EVENTS,
    wall_clock_limit_s: float | None = None,
) -> Replications:
    """Run until the mean of every metric is known within the relative `precision` (Law 9.4.1), at least 10 times.

    How many runs a round has depends on results alone, so the outcome does not depend on the number of workers.
    Raises ExperimentError for a metric that no row has, or that is not a number in some run.
    """
    for metric in metrics:
        check_metric(scenario, metric)
    if maximum < MINIMUM:
        raise ExperimentError(f"at least {MINIMUM} replications are needed, found --max {maximum}")
    rule = default_warm_up(scenario) if warm_up is None else warm_up
    rows: list[Row] = []
    used: list[int] = []
    wanted = MINIMUM
    while True:
        new = seeds(scenario, wanted - len(rows), first=len(rows))
        used += new
        rows += runner.run(
            [
                make_job(
                    scenario,
                    seed=seed,
                    warm_up=rule,
                    max_events=max_events,
                    wall_clock_limit_s=wall_clock_limit_s,
                )
                for seed in new
            ]
        )
        known = {
            m: relative_precision(_sample(rows, m), precision, confidence, MINIMUM) for m in metrics
        }
        if len(rows) >= maximum or all(p.reached for p in known.values()):
            break
        needed = max(p.replications_needed for p in known.values())
        # The variance that says so is itself an estimate: no more than double at once.
        wanted = min(maximum, 2 * len(rows), max(needed, len(rows) + 1))
    return Replications(frame_of([{"seed": s} for s in used], rows), known, rule)


def shown_metrics(scenario: Scenario) -> list[str]:
    """The metrics that a table shows unless others are asked for."""
    names = ["latency_mean_s", "latency_p95_s", "error_rate", "throughput_per_s", "utilisation"]
    return [*names, *(["slos_met"] if scenario.slos else [])]


def _sample(rows: Sequence[Row], metric: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([number_of(row, metric) for row in rows])
