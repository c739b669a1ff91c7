"""What a terminal shows of a run: the verdict with its doubts, and figures only where something was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.console import show_run
from reports.document import build_report
from reports.summary import summarise
from reports.wording import DASH
from tests.reports.simulated import simulated
from tests.reports.synthetic import Truth, from_outside


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    show_run(folder, as_json=False)
    return capsys.readouterr().out


def row_of(text: str, figure: str) -> str:
    """The value of a figure in the table."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"│ {figure} "))
    return line.split("│")[2].strip()


def test_a_run_without_requests_is_shown_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rare = {"workload.arrivals.rate_per_s": 0.0001, "horizon_s": 1}
    run = simulated(tmp_path / "run", "mm1", rare)
    text = shown(run.folder, capsys)
    assert "Too few requests to judge: 0 recorded" in text
    assert row_of(text, "throughput") == DASH
    report = build_report([run.folder], tmp_path / "report").markdown.read_text()
    assert "no request was recorded" in report


def test_what_was_not_seen_of_a_foreign_target_is_a_dash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = from_outside(tmp_path / "run", Truth(requests=300))
    text = shown(folder, capsys)
    assert "The target's inside was not seen" in text
    assert [row_of(text, figure) for figure in ("cache hits", "largest fleet")] == [DASH, DASH]
    summary = summarise(folder)
    assert (summary["inside_seen"], summary["largest_instances"]) == (False, None)
    report = build_report([folder], tmp_path / "report").markdown.read_text()
    assert f"| Largest number of instances | {DASH} |" in report
    assert f"| Instance hours | {DASH} |" in report
