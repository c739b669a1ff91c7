"""What a terminal shows of runs: verdict, headline figures, the twin table; or one JSON object for scripts."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from reports import tables
from reports.document import ReportPaths
from reports.run import load_run
from reports.summary import summarise
from reports.twin import match_runs, twin_table
from reports.wording import DASH, amount

__all__ = ["show_reports", "show_run"]

# Characters that the twin table needs for all of its columns.
_WIDE: Final = 120


def show_run(folder: Path, *, as_json: bool) -> None:
    """One finished run: its verdict and figures, and how to see more. Raises ReportError."""
    summary = summarise(folder)
    if as_json:
        _print_json(summary)
        return
    _print_verdict(summary)
    _print_rows("Run", ("figure", "value"), _headline(summary))
    click.echo(f"Run: {folder}\nReport: twinload report {folder}")


def show_reports(runs: Sequence[Path], paths: ReportPaths, *, as_json: bool) -> None:
    """The verdicts of the runs that a report is about, the twin table of two, and where the report is."""
    summaries = [summarise(run) for run in runs]
    if as_json:
        twin = []
        if len(runs) == 2:
            twin = json.loads(twin_table(runs[0], runs[1]).to_json(orient="records"))
        _print_json(
            {
                "html": str(paths.html),
                "markdown": str(paths.markdown),
                "runs": summaries,
                "twin": twin,
            }
        )
        return
    for summary in summaries:
        _print_verdict(summary)
    if len(runs) == 2:
        _print_twin(runs)
    click.echo(f"Report: {paths.html}")


def _headline(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    latency = summary["latency"]
    yield "requests", f"{summary['requests']:,}"
    yield "outcomes", ", ".join(f"{n:,} {k}" for k, n in summary["outcomes"].items())
    rate = summary["throughput_per_s"]
    yield "throughput", DASH if rate is None else amount(rate, " /s")
    for name in ("p50", "p95", "p99"):
        value = latency.get(f"latency_intended_{name}_s")
        if value is not None:
            yield f"latency {name}", amount(value, "s")
    hits = summary["cache_hit_ratio"]
    without = "no cache" if summary["inside_seen"] else DASH
    yield "cache hits", without if hits is None else f"{hits:.1%}"
    yield "largest fleet", _instances(summary["largest_instances"])
    if summary["faults"]:
        kinds = Counter(fault["fault"] for fault in summary["faults"])
        yield "faults", ", ".join(f"{n:,} {kind}" for kind, n in kinds.items())
    yield "cost", f"${summary['cost_usd']:.4f}"
    for batch in summary["batches"]:
        results = ", ".join(f"{n:,} {k}" for k, n in batch["outcomes"].items())
        done_s = batch["done_s"]
        when = "not done" if done_s is None else f"done at {amount(done_s, 's')}"
        yield f"batch {batch['number']}", f"{results}; {when}; ${batch['cost_usd']:.4f}"


def _instances(most: int | None) -> str:
    if most is None:
        return DASH
    return f"{most} instance{'' if most == 1 else 's'}"


def _print_verdict(summary: dict[str, Any]) -> None:
    """The verdict, how surely it holds, and all that speaks against it."""
    verdict = summary["verdict"]
    click.echo(f"{verdict['headline']}\n{verdict['action']}")
    validity = summary["validity"]
    cut = "" if summary["complete"] else "; cut short"
    click.echo(f"Confidence: {verdict['confidence']}; validity: {validity['state']}{cut}")
    doubts = [] if verdict["confidence"] == "high" else verdict["reasons"]
    checks = [
        f"{c['name']} ({c['state']}): {c['detail']}"
        for c in validity["checks"]
        if c["state"] in ("warn", "fail")
    ]
    for doubt in (*doubts, *checks):
        click.echo(f"- {doubt}")


def _print_twin(runs: Sequence[Path]) -> None:
    live, virtual = (load_run(run) for run in runs)
    match = match_runs(live, virtual)
    table = tables.twin(
        twin_table(live, virtual), (live.world, virtual.world), match.paired, match.replayed
    )
    # On a narrow terminal the last column, the interval, would make every row three lines high.
    columns = len(table.heads) if shutil.get_terminal_size().columns >= _WIDE else -1
    _print_rows(table.title, table.heads[:columns], [row[:columns] for row in table.rows])
    for warning in match.warnings:
        click.echo(warning)


def _print_rows(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2))
