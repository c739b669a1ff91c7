"""What the experiments' commands share: the folder of results, workers, progress, and how results are shown."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from simulation.experiments.edge import Edge
from simulation.experiments.frames import write_parquet
from simulation.experiments.journal import Journal
from simulation.experiments.runner import JobRunner, Progress
from simulation.experiments.workers import choose_workers
from simulation.scenario.schema import Scenario
from simulation.scenario.spec import load_scenario, parse_overrides

__all__ = ["Bench", "records", "show_table"]


class Bench:
    """One experiment from the command line: its scenario, its folder, its runner, its output."""

    def __init__(
        self,
        experiment: str,
        asked: Mapping[str, object],
        *,
        scenario: str,
        assignments: Sequence[str],
        seed: int | None,
        workers: int,
        cluster: str | None,
        out: Path | None,
        resume: bool,
        max_events: int,
        time_limit: float,
        as_json: bool,
    ) -> None:
        """`asked`: what of the experiment decides on its results; with the scenario it names the default folder."""
        overrides = parse_overrides(assignments)
        if seed is not None:
            overrides["seed"] = seed
        self.scenario: Scenario = load_scenario(scenario, overrides)
        self._experiment = experiment
        self._as_json = as_json
        self._workers = workers
        self._cluster = cluster
        self._resume = resume
        edge = click.get_current_context().find_object(Edge) or Edge()
        self._wall_clock = edge.wall_clock
        self._max_events = max_events
        self._time_limit_s = time_limit
        design = {
            "experiment": experiment,
            "scenario": self.scenario.model_dump(mode="json"),
            "asked": dict(asked),
            "max_events": max_events,
        }
        digest = hashlib.sha256(json.dumps(design, sort_keys=True, default=str).encode())
        name = f"{self.scenario.name}-{experiment}-{digest.hexdigest()[:8]}"
        self.folder = out or Path("experiments") / name
        provenance = msgspec.to_builtins(edge.provenance())
        self._identity = json.loads(json.dumps({**design, **provenance}, default=str))

    @property
    def limits(self) -> dict[str, Any]:
        """Keyword arguments of the experiments."""
        return {"max_events": self._max_events, "wall_clock_limit_s": self._time_limit_s}

    @contextlib.contextmanager
    def runner(self) -> Iterator[JobRunner]:
        """A runner with the folder's journal, and a bar on standard error where somebody looks at it."""
        console = Console(stderr=True)
        bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=self._as_json or not console.is_terminal,
        )
        bar = bars.add_task(f"{self._experiment} of {self.scenario.name}", total=None)

        def advance(progress: Progress) -> None:
            bars.update(bar, completed=progress.done, total=progress.total)

        workers = choose_workers(self._workers, self._cluster)
        with Journal(self.folder, self._identity, resume=self._resume) as journal:
            try:
                with (
                    bars,
                    JobRunner(
                        workers, journal, wall_clock=self._wall_clock, on_progress=advance
                    ) as runner,
                ):
                    yield runner
            except KeyboardInterrupt:
                kept = "no run had finished, so nothing is kept"
                if len(journal):
                    kept = f"finished runs ({len(journal)}) are kept in {self.folder}; --resume goes on"
                raise KeyboardInterrupt(kept) from None

    def finish(self, runs: pd.DataFrame, result: Mapping[str, object]) -> bool:
        """Write the runs as Parquet and the result as JSON beside them; True where text is wanted."""
        write_parquet(runs, self.folder / "runs.parquet")
        document = {
            "experiment": self._experiment,
            "scenario": self.scenario.name,
            "folder": str(self.folder),
            **result,
        }
        text = json.dumps(document, indent=2)
        (self.folder / "result.json").write_text(text + "\n", "utf-8")
        if self._as_json:
            click.echo(text)
        return not self._as_json

    def close(self) -> None:
        """The last line of text."""
        click.echo(f"Results: {self.folder}")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame as JSON-able rows, NaN as null."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows


def show_table(title: str, frame: pd.DataFrame) -> None:
    """A frame as a table; numbers to the right, with four significant digits.

    No heading and no number is broken: a table that is wider than the terminal goes on below, under its first column.
    Without a terminal it is as wide as it has to be.
    """
    console = Console()
    short = [str(column).rpartition(".")[2] for column in frame.columns]
    # The last part of a field's path says enough, unless two fields share it.
    heads = [
        head if short.count(head) == 1 else str(column)
        for head, column in zip(short, frame.columns, strict=True)
    ]
    cells = [[_text(value) for value in frame.iloc[:, i]] for i in range(len(heads))]
    numeric = [_is_numeric(frame.iloc[:, i]) for i in range(len(heads))]
    widths = [max(map(len, (head, *column))) for head, column in zip(heads, cells, strict=True)]
    if not console.is_terminal:
        console = Console(width=sum(widths) + 3 * len(widths) + len(title) + 1)
    for number, columns in enumerate(_parts(widths, console.width)):
        table = Table(title=None if number else title, title_justify="left")
        for i in columns:
            # Text that would fill a line by itself is what may be folded.
            table.add_column(
                heads[i],
                justify="right" if i and numeric[i] else "left",
                no_wrap=numeric[i] or widths[i] + 4 <= console.width // 2,
                overflow="fold",
            )
        for row in zip(*(cells[i] for i in columns), strict=True):
            table.add_row(*row)
        console.print(table)


def _parts(widths: Sequence[int], available: int) -> list[list[int]]:
    """Columns that stand beside each other in `available` characters, the first one in every part."""
    if sum(widths) + 3 * len(widths) + 1 <= available or len(widths) < 3:
        return [list(range(len(widths)))]
    parts: list[list[int]] = []
    room = -1
    for i, width in enumerate(widths[1:], start=1):
        if width + 3 > room:
            parts.append([0])
            room = available - widths[0] - 4
        parts[-1].append(i)
        room -= width + 3
    return parts


def _is_numeric(column: pd.Series[Any]) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column))


def _text(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)
