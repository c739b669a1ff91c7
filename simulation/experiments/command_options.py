"""Options that several of the experiments' commands have."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from simulation.experiments.job import DEFAULT_MAX_EVENTS, WarmUpRule

__all__ = [
    "bench_options",
    "confidence_option",
    "json_option",
    "metric_option",
    "metrics_option",
    "replications_option",
    "set_option",
    "warm_up_option",
]

Command = TypeVar("Command", bound=Callable[..., None])

set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Replace a field of the scenario; repeatable.",
)
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object and nothing else on standard output.",
)

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("scenario"),
    set_option,
    click.option("--seed", type=click.IntRange(0), help="Seed of the first replication."),
    click.option(
        "--workers",
        type=click.IntRange(1, 1024),
        default=lambda: os.cpu_count() or 1,
        show_default="one a core",
        help="Processes that simulate; 1: none beside this one.",
    ),
    click.option(
        "--cluster", metavar="ADDRESS", help="Simulate on the Dask cluster there instead."
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Folder of results; default: experiments/NAME-EXPERIMENT-HASH.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the results in the folder."),
    click.option(
        "--max-events",
        type=click.IntRange(1),
        default=DEFAULT_MAX_EVENTS,
        show_default=True,
        help="Callbacks and events after which a run is cut short.",
    ),
    click.option(
        "--time-limit",
        type=click.FloatRange(0, min_open=True),
        default=3600.0,
        show_default=True,
        metavar="SECONDS",
        help="Real seconds after which a run is cut short.",
    ),
    json_option,
)


def bench_options(command: Command) -> Command:
    """The options that every experiment has; collected by `Bench`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _warm_up_rule(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> WarmUpRule | None:
    """`--warm-up SECONDS|mser5`."""
    if value is None:
        return None
    if value == "mser5":
        return "mser5"
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise click.BadParameter(f"expected seconds from 0 on, or mser5; found {value!r}")
    return seconds


class Decorator(Protocol):
    """Adds an option to a command."""

    def __call__(self, command: Command, /) -> Command: ...


def metric_option(help_text: str) -> Decorator:
    """`--metric COLUMN`, one."""
    return click.option(
        "--metric",
        default="latency_mean_s",
        show_default=True,
        metavar="COLUMN",
        help=f"{help_text}, such as latency_p95_s or slo:NAME.",
    )


def metrics_option(command: Command) -> Command:
    """`--metric COLUMN`, any number."""
    return click.option(
        "--metric",
        "metrics",
        multiple=True,
        metavar="COLUMN",
        help="A figure of the runs, such as latency_p95_s or slo:NAME; repeatable.",
    )(command)


def replications_option(default: int) -> Decorator:
    """`--replications`."""
    return click.option(
        "--replications",
        "-r",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Runs of each point, with the same seeds everywhere.",
    )


def warm_up_option(default: str | None, help_text: str) -> Decorator:
    """`--warm-up`; None stands for the experiment's own choice."""
    return click.option(
        "--warm-up",
        default=default,
        show_default=default is not None,
        callback=_warm_up_rule,
        metavar="SECONDS|mser5",
        help=help_text,
    )


def confidence_option(command: Command) -> Command:
    """`--confidence`."""
    return click.option(
        "--confidence",
        type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
        default=0.95,
        show_default=True,
        help="Of intervals and verdicts.",
    )(command)
