"""`sweep`: a scenario at many points, each with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from simulation.experiments.frames import frame_of
from simulation.experiments.job import DEFAULT_MAX_EVENTS, WarmUpRule, make_job
from simulation.experiments.points import seeds, variants
from simulation.experiments.runner import JobRunner
from simulation.scenario.schema import Scenario

__all__ = ["sweep"]


def sweep(
    scenario: Scenario,
    points: Sequence[Mapping[str, object]],
    runner: JobRunner,
    *,
    replications: int = 1,
    warm_up: WarmUpRule = 0.0,
    max_events: int = DEFAULT_MAX_EVENTS,
    wall_clock_limit_s: float | None = None,
) -> pd.DataFrame:
    """Run `scenario` with each point's overrides, `replications` times.

    Returns one row a run, in the order of the points: the point's fields, `seed`, and the columns of
    `MeasuringSink.row`. Raises ScenarioError for a point that is no scenario, before anything runs.
    """
    jobs, labels = [], []
    for point, variant in zip(points, variants(scenario, map(dict, points)), strict=True):
        # A point may set the seed itself; replications count from there.
        for seed in seeds(variant, replications):
            jobs.append(
                make_job(
                    variant,
                    seed=seed,
                    warm_up=warm_up,
                    max_events=max_events,
                    wall_clock_limit_s=wall_clock_limit_s,
                )
            )
            labels.append({**point, "seed": seed})
    return frame_of(labels, runner.run(jobs))
