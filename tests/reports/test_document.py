"""The report as files: it stands alone, is whole or absent, and copes with every run that can be read."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reports.document import ReportPaths, build_report
from reports.errors import ReportError
from reports.run import load_run
from reports.summary import SUMMARY_KEYS, summarise
from reports.twin import twin_table
from tests.reports.conftest import QUEUEING, ROOMY
from tests.reports.synthetic import Truth, records, write_run

ROOT = Path(__file__).parents[2]


class Resources(HTMLParser):
    """Collects what a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v or "" for k, v in attrs if k in {"src", "srcset", "data", "poster"}]
        self.fetched += [v or "" for k, v in attrs if k == "href" and not (v or "").startswith("#")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: Path) -> Resources:
    resources = Resources()
    resources.feed(page.read_text(encoding="utf-8"))
    return resources


class TestFiles:
    def test_the_page_fetches_nothing(self, twins: ReportPaths) -> None:
        page = twins.html
        resources = parsed(page)
        assert resources.fetched
        assert all(r.startswith("data:image/png;base64,") for r in resources.fetched)
        assert not {"script", "link", "iframe"} & set(resources.tags)
        assert "url(" not in page.read_text()

    def test_every_figure_has_a_text_and_markdown_finds_its_file(self, single: ReportPaths) -> None:
        images = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", single.markdown.read_text())
        assert len(images) == len(list(single.figures.glob("*.png"))) >= 6
        assert all(alt and (single.markdown.parent / target).is_file() for alt, target in images)

    def test_the_live_run_comes_first_whichever_is_named_first(
        self, runs: Path, twins: ReportPaths, tmp_path: Path
    ) -> None:
        other_order = build_report([runs / "live", runs / "queueing"], tmp_path)
        assert other_order.markdown.read_text() == twins.markdown.read_text()
        assert "| Measure | live | virtual |" in twins.markdown.read_text()

    def test_the_same_run_gives_the_same_bytes(
        self, runs: Path, single: ReportPaths, tmp_path: Path
    ) -> None:
        again = build_report([runs / "queueing"], tmp_path)
        assert again.html.read_bytes() == single.html.read_bytes()

    def test_a_new_report_replaces_the_old_and_leaves_nothing_of_it(
        self, runs: Path, tmp_path: Path
    ) -> None:
        both = build_report([runs / "live", runs / "queueing"], tmp_path)
        before = {p.name for p in both.figures.iterdir()}
        alone = build_report([runs / "queueing"], tmp_path)
        after = {p.name for p in alone.figures.iterdir()}
        assert after < before
        assert not list(tmp_path.rglob("*.partial"))

    def test_a_folder_that_cannot_be_written_is_one_line(self, runs: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ReportError, match="cannot be written"):
            build_report([runs / "queueing"], tmp_path / "file")

    def test_names_from_a_scenario_are_text_and_never_markup(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path / "run", Truth(requests=200))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["scenario"]["name"] = "<script>alert(1)</script> a|b"
        (folder / "manifest.json").write_text(json.dumps(manifest))
        paths = build_report([folder], tmp_path / "out")
        resources = parsed(paths.html)
        assert "script" not in resources.tags
        assert "<script>alert(1)</script> a|b (virtual)" in resources.text
        assert "<script>" not in paths.markdown.read_text().replace("\\<script\\>", "")

    def test_markdown_tables_keep_their_number_of_columns(self, twins: ReportPaths) -> None:
        text = twins.markdown.read_text()
        blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
        assert len(blocks) > 8
        for block in blocks:
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}
            assert len(counts) == 1, block


class TestContent:
    def test_the_verdict_is_on_top(self, single: ReportPaths) -> None:
        text = single.markdown.read_text()
        assert "slots" in text.split("##")[0]
        assert "confidence:" in text.split("##")[0]

    def test_all_sections_are_there(self, twins: ReportPaths) -> None:
        text = twins.markdown.read_text()
        assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == [
            "Twin table",
            "Latency and throughput",
            "Delay of slow requests, by stage",
            "Utilisation and queues, by station",
            "Instances and scaling",
            "Promises, outcomes and cost",
            "Can the run be believed?",
            "Provenance",
        ]

    def test_different_workloads_are_warned_of_in_the_page(
        self, runs: Path, tmp_path: Path
    ) -> None:
        other = write_run(tmp_path / "run", dataclasses.replace(QUEUEING, seed=5, requests=900))
        page = build_report([runs / "live", other], tmp_path / "out").html
        assert any("different workloads" in t for t in parsed(page).text)

    def test_two_virtual_runs_are_told_apart(self, runs: Path, tmp_path: Path) -> None:
        text = build_report([runs / "queueing", runs / "roomy"], tmp_path).markdown.read_text()
        assert "| Measure | virtual A | virtual B |" in text


POOR: dict[str, tuple[Truth, Any]] = {
    "no request at all": (Truth(requests=0), lambda rows: []),
    "one request": (Truth(requests=1, hit_fraction=0), None),
    "no request completed": (Truth(requests=100, hit_fraction=0, failing=1.0), None),
    "five requests": (Truth(requests=5), None),
    "everything from the cache": (Truth(requests=100, hit_fraction=1.0), None),
    "cut short, half in flight": (
        Truth(requests=100, complete=False, hit_fraction=0),
        lambda rows: [
            type(r)(**{f: getattr(r, f) for f in r.__struct_fields__} | {"outcome": "unfinished"})
            if r.request_id % 2
            else r
            for r in rows
        ],
    ),
}


@pytest.mark.parametrize("case", POOR)
def test_a_poor_run_gets_a_report_that_says_so(case: str, tmp_path: Path) -> None:
    truth, change = POOR[case]
    rows = records(truth)
    folder = write_run(tmp_path / "run", truth, change(rows) if change else rows)
    paths = build_report([folder], tmp_path / "out")
    text = paths.markdown.read_text()
    assert re.search(r"\bnan\b", text) is None
    json.dumps(summarise(folder), allow_nan=False)


@pytest.mark.parametrize("case", ["no request at all", "one request"])
def test_even_two_poor_runs_can_be_compared(case: str, tmp_path: Path) -> None:
    truth, change = POOR[case]
    rows = records(truth)
    folder = write_run(tmp_path / "run", truth, change(rows) if change else rows)
    table = twin_table(folder, folder)
    assert (table["difference"].fillna(0) == 0).all()
    build_report([folder, folder], tmp_path / "twins")


def test_no_completed_request_is_said_in_the_verdict(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Truth(requests=100, hit_fraction=0, failing=1.0))
    text = build_report([folder], tmp_path / "out").markdown.read_text()
    assert "100% of requests fail" in text
    assert "No request was answered" in text


class TestBadInput:
    def refused(self, folder: Path) -> str:
        with pytest.raises(ReportError) as caught:
            load_run(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        return write_run(tmp_path / "run", Truth(requests=30))

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        assert "no such folder" in self.refused(tmp_path / "nowhere")

    def test_a_folder_that_is_no_run(self, tmp_path: Path) -> None:
        assert "manifest.json" in self.refused(tmp_path)

    def test_a_manifest_that_is_not_json(self, run: Path) -> None:
        (run / "manifest.json").write_text("{")
        assert "manifest.json" in self.refused(run)

    def test_a_newer_format(self, run: Path) -> None:
        manifest = json.loads((run / "manifest.json").read_text()) | {"format_version": 99}
        (run / "manifest.json").write_text(json.dumps(manifest))
        assert "99 is newer" in self.refused(run)

    @pytest.mark.parametrize("name", ["requests.parquet", "stations.parquet"])
    def test_a_missing_table(self, run: Path, name: str) -> None:
        (run / name).unlink()
        assert f"{name}: missing" in self.refused(run)

    def test_a_table_that_was_being_written(self, run: Path) -> None:
        (run / "requests.parquet").rename(run / "requests.parquet.partial")
        assert "killed while it wrote" in self.refused(run)

    @pytest.mark.parametrize(
        "content", [b"", b"not parquet at all", b"PAR1" + b"\0" * 64 + b"PAR1"]
    )
    def test_a_corrupt_table(self, run: Path, content: bytes) -> None:
        (run / "requests.parquet").write_bytes(content)
        assert "not a readable Parquet file" in self.refused(run)

    def test_a_table_without_a_column(self, run: Path) -> None:
        import pandas as pd

        path = run / "requests.parquet"
        pd.read_parquet(path).drop(columns=["sent_s", "lag_s"]).to_parquet(path)
        assert "lacks the columns sent_s, lag_s" in self.refused(run)

    def test_an_outcome_that_this_version_does_not_know(self, run: Path) -> None:
        import pandas as pd

        path = run / "requests.parquet"
        pd.read_parquet(path).assign(outcome="teleported").to_parquet(path)
        assert "'teleported' is unknown" in self.refused(run)

    def test_a_request_with_two_rows(self, tmp_path: Path) -> None:
        rows = records(Truth(requests=3))
        folder = write_run(tmp_path / "twice", Truth(requests=3), [*rows, rows[1]])
        assert "request 1 has more than one row" in self.refused(folder)

    def test_events_that_are_not_json(self, run: Path) -> None:
        (run / "events.jsonl").write_text("{oops\n")
        assert "events.jsonl" in self.refused(run)

    def test_three_runs(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(ReportError, match="3 were named"):
            build_report([run, run, run], tmp_path)


class TestSummary:
    def test_its_keys_are_those_documented(self, runs: Path) -> None:
        assert list(summarise(runs / "queueing")) == list(SUMMARY_KEYS)
        page = (ROOT / "docs" / "reports.md").read_text()
        assert [k for k in SUMMARY_KEYS if f"`{k}`" not in page] == []

    def test_it_counts_every_request_once(self, runs: Path) -> None:
        summary = summarise(runs / "queueing")
        assert sum(summary["outcomes"].values()) == summary["requests"] == QUEUEING.requests
        assert sum(summary["cache"].values()) == summary["requests"]

    def test_it_is_json_without_nan(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path / "run", Truth(requests=1))
        json.dumps(summarise(folder), allow_nan=False)

    def test_instance_time_is_the_integral_of_the_fleet(self, runs: Path) -> None:
        summary = summarise(runs / "roomy")
        last = max(r.done_s for r in records(ROOMY))
        assert summary["instance_seconds"] == pytest.approx(4 * last, abs=5)


def test_reading_a_run_does_not_load_the_plotting_library() -> None:
    code = (
        "import sys, reports.summary, reports.twin, reports.document;"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'matplotlib', 'simpy', 'locust'}))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert shown.stdout.strip() == "[]"
