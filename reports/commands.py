"""`twinload report`."""

from __future__ import annotations

from pathlib import Path

import click

from reports.console import show_reports
from reports.document import build_report

__all__ = ["report"]


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the report; default: report/ in the last run.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object and nothing else on standard output.",
)
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write the report of one run, or of a live and a virtual one side by side."""
    show_reports(runs, build_report(runs, out or runs[-1] / "report"), as_json=as_json)
