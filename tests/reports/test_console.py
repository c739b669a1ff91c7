"""What a terminal shows of a run: the verdict with its doubts, and figures only where something was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.console import show_run
from reports.document import build_report
from reports.wording import DASH
from tests.reports.simulated import simulated


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
