"""The commands that search: `capacity`, `sensitivity`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import click
import pandas as pd

from simulation.experiments.capacity import INSTANCES, RATE
from simulation.experiments.capacity import capacity as find_capacity
from simulation.experiments.command_bench import Bench, records, show_table
from simulation.experiments.command_options import (
    bench_options,
    confidence_option,
    metric_option,
    replications_option,
    warm_up_option,
)
from simulation.experiments.errors import ExperimentError
from simulation.experiments.job import WarmUpRule
from simulation.experiments.points import parse_vary
from simulation.experiments.sensitivity import sensitivity as find_sensitivity

__all__ = ["capacity", "sensitivity"]


@click.command()
@bench_options
@click.option("--largest", metavar="FIELD", help=f"Find its largest value. Default: {RATE}.")
@click.option(
    "--fewest", metavar="FIELD", help=f"Find its smallest value, for example of {INSTANCES}."
)
@click.option("--between", type=float, nargs=2, metavar="LOW HIGH", help="Search here only.")
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.02,
    show_default=True,
    help="Relative width at which the search of a fraction ends.",
)
@warm_up_option("0", "Not measured at the start of every run.")
@confidence_option
def capacity(
    largest: str | None,
    fewest: str | None,
    between: tuple[float, float] | None,
    precision: float,
    warm_up: WarmUpRule,
    confidence: float,
    **bench_arguments: Any,
) -> None:
    """Find the largest load, or the fewest instances, with which SCENARIO keeps every promise (SLO)."""
    if largest is not None and fewest is not None:
        raise click.UsageError("give either --largest or --fewest")
    goal: Literal["largest", "fewest"] = "fewest" if fewest is not None else "largest"
    path = fewest or largest or RATE
    asked = {
        "path": path,
        "goal": goal,
        "between": between,
        "precision": precision,
        "confidence": confidence,
        "warm_up": warm_up,
    }
    bench = Bench("capacity", asked, **bench_arguments)
    with bench.runner() as runner:
        found = find_capacity(
            bench.scenario,
            runner,
            path=path,
            goal=goal,
            between=between,
            precision=precision,
            confidence=confidence,
            warm_up=warm_up,
            **bench.limits,
        )
    trials = pd.DataFrame(
        [
            {
                path: trial.value,
                "verdict": trial.verdict,
                "runs": trial.replications,
                "reason": trial.reason,
            }
            for trial in found.trials
        ]
    )
    result = {
        "path": path,
        "goal": goal,
        "value": found.value,
        "beyond": found.beyond,
        "confidence": confidence,
        "verdict": found.verdict,
        "trials": records(trials),
    }
    if bench.finish(found.runs, result):
        show_table(f"Candidates, {bench.scenario.name}", trials)
        click.echo(found.verdict)
        bench.close()


@click.command()
@bench_options
@click.option(
    "--factor",
    "ranges",
    multiple=True,
    required=True,
    metavar="FIELD=LOW,HIGH",
    help="A field and the range that it may have; repeatable.",
)
@metric_option("What the factors may have an effect on")
@click.option(
    "--method",
    type=click.Choice(["morris", "sobol"]),
    default="morris",
    show_default=True,
    help="Screening with few runs, or shares of the variance with many.",
)
@click.option(
    "--samples",
    type=click.IntRange(2),
    default=10,
    show_default=True,
    help="Trajectories (Morris), or base samples, a power of 2 (Sobol).",
)
@replications_option(1)
@warm_up_option("0", "Not measured at the start of every run.")
@confidence_option
def sensitivity(
    ranges: Sequence[str],
    metric: str,
    method: Literal["morris", "sobol"],
    samples: int,
    replications: int,
    warm_up: WarmUpRule,
    confidence: float,
    **bench_arguments: Any,
) -> None:
    """Tell which of SCENARIO's fields matter, each varied over its range."""
    factors = _factors(ranges)
    asked = {
        "factors": factors,
        "metric": metric,
        "method": method,
        "samples": samples,
        "replications": replications,
        "warm_up": warm_up,
    }
    bench = Bench("sensitivity", asked, **bench_arguments)
    with bench.runner() as runner:
        found = find_sensitivity(
            bench.scenario,
            factors,
            runner,
            metric=metric,
            method=method,
            samples=samples,
            replications=replications,
            confidence=confidence,
            warm_up=warm_up,
            **bench.limits,
        )
    noise = None if pd.isna(found.noise) else found.noise
    result = {
        "metric": metric,
        "method": method,
        "effects": records(found.effects),
        "noise": noise,
        "runs": len(found.runs),
    }
    if bench.finish(found.runs, result):
        show_table(f"Effects on {metric} of {bench.scenario.name} ({method})", found.effects)
        if noise is not None:
            click.echo(f"Noise of one run: {noise:.3g}")
        bench.close()


def _factors(ranges: Sequence[str]) -> dict[str, tuple[float, float]]:
    factors: dict[str, tuple[float, float]] = {}
    for path, values in parse_vary(ranges).items():
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(values) != 2 or len(numbers) != 2:
            raise ExperimentError(f"--factor {path}: expected LOW,HIGH, found {values}")
        factors[path] = (float(numbers[0]), float(numbers[1]))
    return factors
