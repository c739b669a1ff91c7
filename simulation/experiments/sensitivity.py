"""`sensitivity`: which uncertain input matters, by Morris' screening or Sobol's variance shares (SALib)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from simulation.experiments.errors import ExperimentError
from simulation.experiments.frames import frame_of
from simulation.experiments.job import DEFAULT_MAX_EVENTS, WarmUpRule, make_job
from simulation.experiments.measuring import check_metric, number_of
from simulation.experiments.points import field_value, seeds, variants
from simulation.experiments.runner import JobRunner
from simulation.scenario.schema import Scenario

__all__ = ["Method", "Sensitivity", "sensitivity"]

Method = Literal["morris", "sobol"]


@dataclass(frozen=True)
class Sensitivity:
    """What each factor does to `metric`, the most influential first.

    Attributes:
        runs: one row a run: the factors' values, `seed`, and results.
        effects: Morris: `mu_star` (mean absolute effect of the whole range, in the metric's unit), `mu_star_conf` (half
            width of its interval), `mu` (with sign), `sigma` (spread: interaction or curvature). Sobol: `S1`, `ST` (shares
            of the variance, alone and with interactions), each with `_conf`.
        noise: standard deviation of the metric over replications of one point, NaN for one replication: effects below
            it are not to be trusted.
    """

    metric: str
    method: Method
    runs: pd.DataFrame
    effects: pd.DataFrame
    noise: float


def sensitivity(
    scenario: Scenario,
    factors: Mapping[str, tuple[float, float]],
    runner: JobRunner,
    *,
    metric: str = "latency_mean_s",
    method: Method = "morris",
    samples: int = 10,
    replications: int = 1,
    confidence: float = 0.95,
    warm_up: WarmUpRule = 0.0,
    max_events: int = DEFAULT_MAX_EVENTS,
    wall_clock_limit_s: float | None = None,
) -> Sensitivity:
    """Vary the fields `factors` (path: lowest and highest value) together and tell their effects on `metric`.

    Every point has the same seeds, so luck is shared. Integer fields are rounded. Points: `samples` x (factors + 1) for
    Morris (trajectories; 10 to 50 are usual), x (factors + 2) for Sobol (a power of 2, hundreds).

    Raises ScenarioError for an unknown field, ExperimentError for bounds that make no range, or without SALib.
    """
    check_metric(scenario, metric)
    _check(factors, method, samples)
    names = list(factors)
    whole = [isinstance(field_value(scenario, name), int) for name in names]
    problem = {"num_vars": len(names), "names": names, "bounds": [list(factors[n]) for n in names]}
    design = _design(problem, method, samples, scenario.seed)
    points = [
        {n: round(v) if w else float(v) for n, v, w in zip(names, line, whole, strict=True)}
        for line in design.tolist()
    ]
    jobs, labels = [], []
    shared = seeds(scenario, replications)
    for point, variant in zip(points, variants(scenario, map(dict, points)), strict=True):
        for seed in shared:
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
    rows = runner.run(jobs)
    found = np.array([number_of(row, metric) for row in rows]).reshape(len(points), replications)
    noise = float(np.sqrt(found.var(axis=1, ddof=1).mean())) if replications > 1 else np.nan
    return Sensitivity(
        metric=metric,
        method=method,
        runs=frame_of(labels, rows),
        effects=_effects(problem, method, design, found.mean(axis=1), confidence, scenario.seed),
        noise=noise,
    )


def _check(factors: Mapping[str, tuple[float, float]], method: str, samples: int) -> None:
    if not factors:
        raise ExperimentError("sensitivity needs at least one factor")
    for name, (low, high) in factors.items():
        if not low < high:
            raise ExperimentError(f"{name}: the range must rise, found {low:g} to {high:g}")
    if method == "sobol" and samples & (samples - 1):
        raise ExperimentError(f"Sobol's sample size must be a power of 2, found {samples}")
    if samples < 2:
        raise ExperimentError(f"at least 2 samples are needed, found {samples}")


def _design(problem: dict[str, Any], method: Method, samples: int, seed: int) -> Any:
    """The points, shape (points, factors)."""
    try:
        from SALib.sample import morris, sobol
    except ImportError:
        raise ExperimentError(
            "sensitivity needs SALib: install twinload with the extra 'experiments'"
        ) from None
    if method == "morris":
        return morris.sample(problem, samples, num_levels=4, seed=seed % 2**32)
    return sobol.sample(problem, samples, calc_second_order=False, seed=seed % 2**32)


def _effects(
    problem: dict[str, Any],
    method: Method,
    design: Any,
    found: Any,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    from SALib.analyze import morris, sobol

    if float(found.std()) == 0:
        raise ExperimentError("the metric is the same at every point: none of the factors matters")
    columns: tuple[str, ...]
    if method == "morris":
        result = morris.analyze(
            problem, design, found, conf_level=confidence, num_levels=4, seed=seed % 2**32
        )
        columns, first = ("mu_star", "mu_star_conf", "mu", "sigma"), "mu_star"
    else:
        result = sobol.analyze(
            problem, found, calc_second_order=False, conf_level=confidence, seed=seed % 2**32
        )
        columns, first = ("S1", "S1_conf", "ST", "ST_conf"), "ST"
    table = pd.DataFrame(
        {
            "factor": problem["names"],
            **{c: np.asarray(result[c], dtype=np.float64) for c in columns},
        }
    )
    return table.sort_values(first, ascending=False, kind="stable", ignore_index=True)
