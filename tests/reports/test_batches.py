"""Requests of message batches in a report: a part of their own, and in no other figure."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from reference_impl.telemetry import RequestRecord
from reports.batches import batch_outcomes
from reports.bottleneck import judge
from reports.document import build_report
from reports.objectives import attainments, met_all
from reports.run import Run, load_run
from reports.summary import summarise
from reports.twin import twin_table
from reports.validity import check_run
from simulation.scenario.compiled_batches import FIRST_BATCH_ID
from simulation.scenario.manifest import Manifest
from simulation.scenario.schema import SLO
from tests.reports.synthetic import Truth, records, write_run

TRUTH = Truth(requests=600, steps=((0.0, 4),))
SIZE = 50


def batch_rows(unfinished: int = 0) -> list[RequestRecord]:
    """Submitted at 5 s; one result every 20 s; the last ones missing, the third an error after two calls."""
    rows = []
    for place in range(SIZE):
        missing = place >= SIZE - unfinished
        done_s = 2000.0 if missing else 5.0 + 20.0 * (place + 1)
        rows.append(
            RequestRecord(
                request_id=FIRST_BATCH_ID + place,
                tenant="reports",
                kind="batch",
                model="claude-haiku-4-5",
                intended_s=5.0,
                sent_s=5.0,
                first_token_s=math.nan if missing else done_s,
                done_s=done_s,
                outcome="unfinished" if missing else "client_error" if place == 2 else "ok",
                attempts=0 if missing else 2 if place == 2 else 1,
                cost_usd=0.0 if missing else 0.5,
                queue_wait_s=done_s - 6.0,
                llm_first_token_s=1.0,
            )
        )
    return rows


def written(folder: Path, rows: list[RequestRecord], size: int = SIZE) -> Run:
    write_run(folder, TRUTH, rows)
    manifest = Manifest.read(folder)
    workload = {"batches": [{"requests": size}]}
    msgspec.structs.replace(manifest, scenario={**manifest.scenario, "workload": workload}).write(
        folder
    )
    return load_run(folder)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return written(tmp_path_factory.mktemp("chat") / "run", records(TRUTH))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return written(tmp_path_factory.mktemp("mixed") / "run", [*records(TRUTH), *batch_rows()])


def test_a_batch_is_told_with_results_end_rate_cost_and_waste(mixed: Run) -> None:
    (batch,) = batch_outcomes(mixed)
    assert (batch.number, batch.tenant, batch.model) == (0, "reports", "claude-haiku-4-5")
    assert (batch.requests, dict(batch.outcomes)) == (SIZE, {"ok": SIZE - 1, "client_error": 1})
    assert (batch.submitted_s, batch.done_s, batch.took_s) == (5.0, 1005.0, 1000.0)
    assert batch.rate_per_s == pytest.approx(0.05)
    assert (batch.cost_usd, batch.wasted_calls) == (25.0, 1)


def test_a_batch_that_was_not_done_has_no_end_but_a_rate(tmp_path: Path) -> None:
    run = written(tmp_path / "run", [*records(TRUTH), *batch_rows(unfinished=10)])
    (batch,) = batch_outcomes(run)
    assert math.isnan(batch.done_s)
    assert batch.unfinished == 10
    assert batch.rate_per_s == pytest.approx(0.05)


def test_no_other_figure_knows_of_it(mixed: Run, chat: Run) -> None:
    of_both, of_chat = summarise(mixed), summarise(chat)
    for key in ("requests", "outcomes", "window_s", "latency", "objectives", "goodput_per_s", "cost_usd", "attempts"):  # fmt: skip
        assert of_both[key] == of_chat[key], key
    table = twin_table(mixed, chat).set_index("key")
    assert set(table["difference"].fillna(0.0)) == {0.0}
    assert of_chat["batches"] == []
    (told,) = of_both["batches"]
    assert (told["done_s"], told["took_s"], told["wasted_calls"]) == (1005.0, 1000.0, 1)


def test_rows_of_batches_are_held_to_the_invariants_too(mixed: Run, tmp_path: Path) -> None:
    def failed(run: Run) -> set[str]:
        return {check.name for check in check_run(run) if check.state == "fail"}

    before = failed(mixed)
    rows = batch_rows()
    rows[7] = msgspec.structs.replace(rows[7], queue_wait_s=-3.0)
    assert failed(written(tmp_path / "a", [*records(TRUTH), *rows])) - before == {"Causality"}
    lacking = written(tmp_path / "b", [*records(TRUTH), *batch_rows()[:-1]])
    assert failed(lacking) - before == {"Every arrival has one outcome"}


def test_a_long_queue_of_batches_is_no_evidence_against_the_endpoint(mixed: Run) -> None:
    broker = mixed.stations.iloc[:1].assign(
        station="broker", kind="broker", queue_length=10_000.0, capacity=math.inf
    )
    beside = replace(mixed, stations=pd.concat([mixed.stations, broker], ignore_index=True))
    assert judge(beside).reasons == judge(mixed).reasons


def test_the_report_has_a_part_on_batches_where_there_are_any(
    mixed: Run, chat: Run, tmp_path: Path
) -> None:
    both = build_report([mixed.folder], tmp_path / "both").markdown.read_text("utf-8")
    part = both.split("## Message batches")[1]
    assert "0: reports, claude-haiku-4-5" in part
    assert "$25.00" in part
    alone = build_report([chat.folder], tmp_path / "alone").markdown.read_text("utf-8")
    assert "Message batches" not in alone


def test_a_run_of_nothing_but_a_batch_has_a_report(tmp_path: Path) -> None:
    run = written(tmp_path / "run", batch_rows())
    text = build_report([run.folder], tmp_path / "report").markdown.read_text("utf-8")
    assert "## Message batches" in text


def test_a_promise_on_batches_is_judged_by_their_last_result(mixed: Run, chat: Run) -> None:
    def judged(run: Run, limit_s: float) -> tuple[float, bool, float]:
        slo = SLO(name="soon", metric="batch", limit_s=limit_s)
        (found,) = attainments(run.requests, [slo], run.batches)
        assert found.promise == f"batches done within {limit_s:g} s"
        return found.value, found.met, found.fraction

    assert judged(mixed, 1000.0) == (1000.0, True, 1.0)
    assert judged(mixed, 500.0) == (1000.0, False, 0.5)
    assert judged(chat, 1.0) == (0.0, True, 1.0)


def test_a_batch_with_a_result_missing_keeps_no_promise(tmp_path: Path) -> None:
    run = written(tmp_path / "run", [*records(TRUTH), *batch_rows(unfinished=10)])
    slo = SLO(name="soon", metric="batch", limit_s=1e6)
    (found,) = attainments(run.requests, [slo], run.batches)
    assert (found.met, found.fraction) == (False, 0.8)
    assert attainments(run.requests, [slo]) == [], "nobody who waits is promised anything by it"
    assert met_all(run.requests, [slo]).equals(met_all(run.requests, []))


def test_a_broken_promise_on_batches_is_told_and_no_verdict_says_that_all_are_kept(
    mixed: Run,
) -> None:
    def reasons(limit_s: float) -> tuple[str, str, str]:
        slo = {"name": "soon", "metric": "batch", "limit_s": limit_s}
        manifest = msgspec.structs.replace(
            mixed.manifest, scenario={**mixed.manifest.scenario, "slos": [slo]}
        )
        verdict = judge(replace(mixed, manifest=manifest))
        return verdict.headline, verdict.action, " ".join(verdict.reasons)

    headline, _, why = reasons(2000.0)
    assert "romise is kept" in headline
    assert "soon" not in why
    headline, action, why = reasons(500.0)
    assert "romise is kept" not in headline
    assert "Nothing of yours is limiting" not in headline
    assert "`soon` is broken (batches done within 500 s; it was 1,000 s)" in headline
    assert "`queue.concurrency`" in action
    assert "will not help" not in action
    assert "`soon` is broken (batches done within 500 s; it was 1,000 s)" in why
