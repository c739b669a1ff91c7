"""What a terminal shows of a run: the verdict with its doubts, and figures only where something was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from reports.console import show_run
from reports.document import build_report
from reports.summary import summarise
from reports.wording import DASH
from simulation.scenario.manifest import Manifest
from tests.reports.conftest import ROOMY
from tests.reports.simulated import simulated
from tests.reports.synthetic import Truth, from_outside, records, write_run


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


def cut_short(folder: Path) -> Path:
    """A run with room for its load that was interrupted, so that each tenth request was in flight."""
    truth = dataclasses.replace(ROOMY, complete=False)
    rows = [
        msgspec.structs.replace(row, outcome="unfinished") if row.request_id % 10 == 0 else row
        for row in records(truth)
    ]
    return write_run(folder, truth, rows)


def test_what_was_in_flight_when_a_run_was_cut_short_did_not_fail(tmp_path: Path) -> None:
    summary = summarise(cut_short(tmp_path / "run"))
    assert summary["outcomes"]["unfinished"] == 300
    assert "fail" not in summary["verdict"]["headline"]
    assert summary["objectives"][0]["fraction"] > 0.99  # of those that ended
    complete = Path(cut_short(tmp_path / "other"))
    manifest = Manifest.read(complete)
    msgspec.structs.replace(manifest, complete=True).write(complete)
    assert "10% of requests fail" in summarise(complete)["verdict"]["headline"].replace(".0%", "%")


def test_doubts_are_printed_with_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(cut_short(tmp_path / "run"), capsys)
    assert "Confidence: low; validity: fail; cut short" in text
    assert "- the run fails its validity gate (Requests finished)" in text
    assert "- Requests finished (fail): 300 (10.0%) in flight at the end" in text
    page = build_report([tmp_path / "run"], tmp_path / "report").markdown.read_text()
    assert "(confidence: low; validity: fail; cut short)" in page


def test_a_sure_verdict_is_printed_without_a_list_of_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(write_run(tmp_path / "run", ROOMY), capsys)
    assert "Confidence: high; validity: pass\nRun" in text


def test_three_answers_in_the_drain_are_no_throughput_of_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = Truth(requests=3, hit_fraction=0, mean_service_s=30.0)
    text = shown(write_run(tmp_path / "run", truth), capsys)
    assert row_of(text, "outcomes") == "3 ok"
    assert row_of(text, "throughput") == DASH
