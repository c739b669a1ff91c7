"""What `simulate` and `swarm` have in common: which scenario, under which load, into which folder, with which bars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from reference_impl.telemetry.run_folder import REQUESTS_FILE
from simulation.experiments.command_options import json_option, set_option
from simulation.scenario.manifest import MANIFEST_NAME
from simulation.scenario.schema import Scenario
from simulation.scenario.spec import load_scenario, parse_overrides, with_trace

__all__ = ["chosen_scenario", "progress_bars", "run_options", "telling_what_is_kept"]

Command = TypeVar("Command", bound=Callable[..., None])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("scenario"),
    set_option,
    click.option(
        "--trace", type=click.Path(path_type=Path), help="Replay a recorded trace instead."
    ),
    click.option(
        "--speed",
        type=click.FloatRange(0, min_open=True),
        default=1.0,
        show_default=True,
        help="Play the trace so many times as fast.",
    ),
    click.option(
        "--limit", type=click.IntRange(1), help="Only the first so many requests of the trace."
    ),
    click.option("--seed", type=click.IntRange(0), help="Seed of every draw."),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Folder of the run; default: runs/NAME-WORLD-TIME.",
    ),
    json_option,
)


def run_options(command: Command) -> Command:
    """The options that every run has; `chosen_scenario` takes the first six."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_scenario(
    scenario: str,
    assignments: Sequence[str] = (),
    trace: Path | None = None,
    speed: float = 1.0,
    limit: int | None = None,
    seed: int | None = None,
) -> Scenario:
    """The scenario that the options describe. Raises ScenarioError, or click's UsageError."""
    overrides = parse_overrides(assignments)
    if seed is not None:
        overrides["seed"] = seed
    chosen = load_scenario(scenario, overrides)
    if trace is not None:
        return with_trace(chosen, trace, speed=speed, limit=limit)
    if speed != 1.0 or limit is not None:
        raise click.UsageError("--speed and --limit go with --trace")
    return chosen


@contextlib.contextmanager
def telling_what_is_kept(folder: Path) -> Iterator[None]:
    """An interrupt of the run into `folder` says what it leaves there."""
    try:
        yield
    except KeyboardInterrupt:
        if (folder / REQUESTS_FILE).exists():
            kept = f"what was recorded so far is kept in {folder} and marked incomplete"
        elif (folder / MANIFEST_NAME).exists():
            kept = f"no request had been sent; {folder} holds what was written until then"
        else:
            kept = "nothing had begun, so nothing is kept"
        raise KeyboardInterrupt(kept) from None


@contextlib.contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Progress]:
    """Bars on standard error, where somebody looks at it; they leave nothing behind."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    if quiet or not console.is_terminal:
        yield progress  # never started: it shows nothing
        return
    with progress:
        yield progress
