"""The experiments' commands: `sweep`, `replications`, `compare`, `capacity`, `sensitivity`.

For the command line to register; it hands in an `Edge` as click's context object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import pandas as pd

from simulation.experiments.command_bench import Bench, records, show_table
from simulation.experiments.command_options import (
    bench_options,
    confidence_option,
    metric_option,
    metrics_option,
    replications_option,
    warm_up_option,
)
from simulation.experiments.compare import compare as compare_variants
from simulation.experiments.errors import ExperimentError
from simulation.experiments.frames import summarise
from simulation.experiments.job import WarmUpRule
from simulation.experiments.measuring import check_metric
from simulation.experiments.points import grid, parse_vary, read_points
from simulation.experiments.replications import replicate, shown_metrics
from simulation.experiments.search_commands import capacity, sensitivity
from simulation.experiments.sweep import sweep as run_sweep
from simulation.scenario.spec import parse_overrides

__all__ = ["COMMANDS", "capacity", "compare", "replications", "sensitivity", "sweep"]


@click.command()
@bench_options
@click.option(
    "--vary",
    multiple=True,
    metavar="FIELD=VALUE,VALUE,...",
    help="Values of a field; with several of these, every combination.",
)
@click.option(
    "--points",
    type=click.Path(path_type=Path),
    help="A YAML or JSON list of points (field: value) instead.",
)
@replications_option(1)
@warm_up_option("0", "Not measured at the start of every run.")
@metrics_option
@confidence_option
def sweep(
    vary: Sequence[str],
    points: Path | None,
    replications: int,
    warm_up: WarmUpRule,
    metrics: Sequence[str],
    confidence: float,
    **bench_arguments: Any,
) -> None:
    """Run SCENARIO at many points of its fields."""
    if bool(vary) == (points is not None):
        raise click.UsageError("give either --vary or --points")
    tried = read_points(points) if points is not None else grid(parse_vary(vary))
    asked = {"points": tried, "replications": replications, "warm_up": warm_up}
    bench = Bench("sweep", asked, **bench_arguments)
    for metric in metrics:
        check_metric(bench.scenario, metric)
    with bench.runner() as runner:
        runs = run_sweep(
            bench.scenario,
            tried,
            runner,
            replications=replications,
            warm_up=warm_up,
            **bench.limits,
        )
    fields = list(dict.fromkeys(name for point in tried for name in point))
    shown = metrics or shown_metrics(bench.scenario)
    table = summarise(runs, fields, shown, confidence)
    if bench.finish(runs, {"points": records(table), "runs": len(runs)}):
        plain = [c for c in table.columns if not c.endswith((" low", " high"))]
        show_table(f"Sweep of {bench.scenario.name}", table if metrics else table[plain])
        _show_notes(runs, fields)
        bench.close()


@click.command()
@bench_options
@metrics_option
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Relative half-width at which to stop.",
)
@click.option(
    "--max",
    "maximum",
    type=click.IntRange(10),
    default=200,
    show_default=True,
    help="Runs at most.",
)
@warm_up_option(
    None, "Not measured at the start; default: mser5, or 0 where load or faults follow a plan."
)
@confidence_option
def replications(
    metrics: Sequence[str],
    precision: float,
    maximum: int,
    warm_up: WarmUpRule | None,
    confidence: float,
    **bench_arguments: Any,
) -> None:
    """Run SCENARIO with seed after seed until its figures are known well enough."""
    wanted = tuple(metrics) or ("latency_mean_s",)
    asked = {"metrics": wanted, "precision": precision, "warm_up": warm_up, "max": maximum}
    bench = Bench("replications", asked, **bench_arguments)
    with bench.runner() as runner:
        found = replicate(
            bench.scenario,
            runner,
            metrics=wanted,
            precision=precision,
            confidence=confidence,
            maximum=maximum,
            warm_up=warm_up,
            **bench.limits,
        )
    table = pd.DataFrame(
        [
            {
                "metric": name,
                "mean": p.interval.estimate,
                "low": p.interval.low,
                "high": p.interval.high,
                "relative half-width": p.relative_half_width,
                "reached": p.reached,
                "runs needed": p.replications_needed,
            }
            for name, p in found.precisions.items()
        ]
    )
    result = {
        "metrics": records(table),
        "replications": len(found.runs),
        "reached": found.reached,
        "settled": found.settled,
        "warm_up_s": float(found.runs["warm_up_s"].mean()),
        "confidence": confidence,
    }
    if bench.finish(found.runs, result):
        show_table(f"{len(found.runs)} runs of {bench.scenario.name}", table)
        if not found.settled:
            click.echo("Some runs never settled (MSER-5): make them longer (--set horizon_s=...).")
        if not found.reached:
            click.echo(
                f"The precision of {precision:g} was not reached within --max {maximum} runs."
            )
        _show_notes(found.runs, [])
        bench.close()


@click.command()
@bench_options
@click.option(
    "--variant",
    "named",
    multiple=True,
    metavar="NAME:FIELD=VALUE;...",
    help="Overrides of the scenario under a name; repeatable. The scenario as it is comes first.",
)
@metric_option("What to compare by")
@replications_option(10)
@warm_up_option("0", "Not measured at the start of every run, the same for all variants.")
@confidence_option
def compare(
    named: Sequence[str],
    metric: str,
    replications: int,
    warm_up: WarmUpRule,
    confidence: float,
    **bench_arguments: Any,
) -> None:
    """Compare SCENARIO with variants of it under the same requests and the same luck."""
    alternatives = _alternatives(named)
    asked = {
        "variants": alternatives,
        "metric": metric,
        "replications": replications,
        "warm_up": warm_up,
    }
    bench = Bench("compare", asked, **bench_arguments)
    with bench.runner() as runner:
        found = compare_variants(
            bench.scenario,
            alternatives,
            runner,
            metric=metric,
            replications=replications,
            confidence=confidence,
            warm_up=warm_up,
            **bench.limits,
        )
    pairs = pd.DataFrame(
        [
            {
                "pair": f"{b} - {a}",
                "difference": pair.interval.estimate,
                "low": pair.interval.low,
                "high": pair.interval.high,
                "p (Holm)": pair.p_value,
                "settled": pair.settled,
                "runs needed": math.nan if found.is_negligible(a, b) else pair.replications_needed,
            }
            for (a, b), pair in found.pairs.items()
        ]
    )
    result = {
        "metric": metric,
        "means": found.means,
        "pairs": records(pairs),
        "ranking": found.ranking,
        "verdict": found.verdict,
        "replications": replications,
        "confidence": confidence,
    }
    if bench.finish(found.runs, result):
        show_table(
            f"{metric} of {bench.scenario.name}",
            summarise(found.runs, ["variant"], [metric], confidence),
        )
        show_table(f"Differences in {metric}, {confidence:.0%} together", pairs)
        for sentence in found.verdict:
            click.echo(sentence)
        _show_notes(found.runs, ["variant"])
        bench.close()


COMMANDS: Final[tuple[click.Command, ...]] = (
    replications,
    sweep,
    compare,
    capacity,
    sensitivity,
)


def _alternatives(named: Sequence[str]) -> dict[str, dict[str, object]]:
    """The scenario as it is, and `NAME:FIELD=VALUE;FIELD=VALUE` each."""
    alternatives: dict[str, dict[str, object]] = {"as is": {}}
    for text in named:
        name, colon, assignments = text.partition(":")
        name = name.strip()
        if not colon or not name or not assignments.strip():
            raise ExperimentError(f"--variant {text!r}: expected NAME:FIELD=VALUE;FIELD=VALUE")
        if name in alternatives:
            raise ExperimentError(f"--variant {text!r}: the name {name!r} is taken")
        alternatives[name] = parse_overrides(a for a in assignments.split(";") if a.strip())
    return alternatives


def _show_notes(runs: pd.DataFrame, by: Sequence[str]) -> None:
    """What was beyond capacity or cut short, one line a point."""
    for values, group in runs.groupby(list(by), sort=False) if by else [((), runs)]:
        noted = group["note"][group["note"] != ""]
        if len(noted):
            where = ", ".join(f"{name} = {v}" for name, v in zip(by, values, strict=True))
            share = f"{len(noted)} of {len(group)}"
            click.echo(f"{where}{': ' if where else ''}{noted.iloc[0]} (runs: {share})")
