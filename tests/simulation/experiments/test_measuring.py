"""A run's row says what the report of the same run says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from reference_impl.telemetry import RequestRecord
from reports.metrics import QUANTILES, derive, hit_ratio, quantile_of
from reports.objectives import attainments
from reports.run import load_run
from simulation.experiments.backlog import growth
from simulation.experiments.errors import ExperimentError
from simulation.experiments.job import make_job, run_job
from simulation.experiments.measuring import (
    METRICS,
    MeasuringSink,
    Row,
    attained_column,
    check_metric,
    number_of,
    slo_column,
)
from simulation.experiments.virtual_run import Provenance, run_virtual
from simulation.scenario.spec import load_scenario
from simulation.scenario.workload import compile_workload
from simulation.world import simulate
from tests.simulation.experiments.tools import small

SLOS = [
    {"name": "first token", "metric": "ttft", "quantile": 0.95, "limit_s": 0.5},
    {"name": "answer", "metric": "latency", "quantile": 0.9, "limit_s": 0.6},
    {"name": "pace", "metric": "tpot", "quantile": 0.5, "limit_s": 0.01},
    {"name": "errors", "metric": "error_rate", "limit": 0.01},
]


def test_a_row_agrees_with_the_report_of_the_same_run(tmp_path: Path) -> None:
    faults = [{"kind": "529", "probability": 0.3}, {"kind": "drop_stream", "probability": 0.1}]
    scenario = load_scenario("demo", {"slos": SLOS, "endpoint.faults": faults})
    run_virtual(scenario, compile_workload(scenario), tmp_path / "run", Provenance())
    requests = derive(load_run(tmp_path / "run").requests)
    row = run_job(make_job(scenario))
    assert row["requests"] == len(requests)
    reported = {metric.key: quantile_of(requests, metric) for metric in QUANTILES}
    for name in ("latency", "ttft"):
        for level in (50, 95):
            expected = reported[f"{name}_intended_p{level}_s"]
            assert row[f"{name}_p{level}_s"] == pytest.approx(expected)
    assert row["cache_hit_ratio"] == pytest.approx(hit_ratio(requests))
    assert row["cost_usd"] == pytest.approx(requests["cost_usd"].sum())
    found = attainments(requests, scenario.slos)
    for slo, attainment in zip(scenario.slos, found, strict=True):
        assert row[slo_column(slo)] == pytest.approx(attainment.value)
        assert row[attained_column(slo)] == pytest.approx(attainment.fraction)
    assert row["slos_met"] is all(attainment.met for attainment in found)


def test_every_metric_is_in_every_row_and_can_be_asked_for() -> None:
    scenario = small(slos=SLOS)
    row = run_job(make_job(scenario))
    for name in (*METRICS, "slo:answer", "attained:errors", "slos_met"):
        check_metric(scenario, name)
        assert name in row


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(
        ExperimentError, match="unknown metric 'latency_p95': did you mean 'latency_p95_s'"
    ):
        check_metric(small(), "latency_p95")


def test_m_m_1_uses_its_server_as_much_as_its_load_says() -> None:
    row = run_job(make_job(small(horizon_s=20_000), warm_up=500.0))
    assert row["warm_up_s"] == 500.0
    assert row["utilisation"] == pytest.approx(0.7, rel=0.03)
    assert row["throughput_per_s"] == pytest.approx(0.7, rel=0.03)
    assert row["instance_s"] == pytest.approx(19_500, rel=0.01)
    assert row["latency_mean_s"] == pytest.approx(3.33, rel=0.15)


def test_a_run_without_requests_has_no_numbers_but_a_row() -> None:
    row = run_job(make_job(small(workload__arrivals__rate_per_s=1e-9)))
    assert (row["requests"], row["latency_mean_s"], row["status"]) == (0, None, "done")
    with pytest.raises(ExperimentError, match="a run has no such number"):
        number_of(row, "latency_mean_s")


def test_mser5_leaves_out_the_start_of_a_queue_that_begins_full() -> None:
    """200 requests at once, then a light load: the first minutes are not like the rest."""
    crowd = {
        "kind": "piecewise",
        "segments": [{"duration_s": 1, "rate_per_s": 200}, {"duration_s": 5000, "rate_per_s": 0.3}],
    }
    scenario = small(workload__arrivals=crowd, horizon_s=5000)
    plain, truncated = run_job(make_job(scenario)), run_job(make_job(scenario, warm_up="mser5"))
    assert number_of(truncated, "warm_up_s") > 50
    assert truncated["settled"] is True
    assert number_of(truncated, "latency_mean_s") < number_of(plain, "latency_mean_s") / 5


# Beyond capacity.


def test_a_load_beyond_capacity_says_so_and_how_fast_the_backlog_grows() -> None:
    row = run_job(make_job(small(workload__arrivals__rate_per_s=1.5, horizon_s=2000)))
    assert row["status"] == "unstable"
    assert number_of(row, "backlog_growth_per_s") == pytest.approx(0.5, rel=0.15)
    assert str(row["note"]).startswith("beyond capacity: the backlog grows at 0.")
    assert number_of(row, "throughput_per_s") == pytest.approx(1.0, rel=0.1)


def test_a_run_that_reaches_its_event_limit_is_a_row_and_no_error() -> None:
    scenario = small(workload__arrivals__rate_per_s=1.5, horizon_s=20_000)
    row = run_job(make_job(scenario, max_events=60_000))
    assert row["status"] == "unstable"
    assert "max_events=60000" in str(row["note"])
    assert number_of(row, "backlog_growth_per_s") == pytest.approx(0.5, rel=0.2)


def test_the_event_limit_alone_is_no_instability() -> None:
    row = run_job(
        make_job(small(horizon_s=100_000, workload__arrivals__rate_per_s=0.3), max_events=50_000)
    )
    assert row["status"] == "limit"


def test_a_wall_clock_limit_ends_a_run() -> None:
    ticks = iter(range(1_000_000))
    job = make_job(small(horizon_s=100_000), wall_clock_limit_s=20.0)
    row: Row = run_job(job, lambda: float(next(ticks)))
    assert "wall_clock_limit_s=20 is over" in str(row["note"])


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.95])
def test_a_busy_queue_that_wanders_is_not_called_unstable(rate: float) -> None:
    rows = [
        run_job(make_job(small(workload__arrivals__rate_per_s=rate, horizon_s=3000), seed=seed))
        for seed in range(1, 9)
    ]
    assert sum(row["status"] == "unstable" for row in rows) <= 1


def test_growth_is_the_slope_of_arrivals_minus_departures() -> None:
    sent_s = np.arange(0, 1000, 0.5, dtype=np.float64)
    done_s = np.arange(len(sent_s), dtype=np.float64) + 1.0
    grown = growth(sent_s, done_s, 1000.0)
    assert grown.significant
    assert grown.per_s == pytest.approx(1.0, rel=0.01)
    assert growth(sent_s, sent_s + 3, 1000.0).significant is False
    assert math.isclose(growth(np.array([]), np.array([]), 10.0).per_s, 0.0)


def test_requests_of_batches_are_measured_apart() -> None:
    promise = {"name": "soon", "metric": "batch", "limit_s": 899.5}
    spec = load_scenario("mm1", {"horizon_s": 200, "slos": [promise]})
    plain, mixed = MeasuringSink(spec), MeasuringSink(spec)
    simulate(spec, compile_workload(spec), plain)
    simulate(spec, compile_workload(spec), mixed)
    for place, outcome in enumerate(("ok", "ok", "client_error")):
        mixed.request(
            RequestRecord(
                request_id=10**9 + place, kind="batch", intended_s=0.0, sent_s=0.0, done_s=900.0 - place,
                outcome="ok" if outcome == "ok" else "client_error", cost_usd=2.0,
            )
        )  # fmt: skip
    alone, both = plain.row(0.0), mixed.row(0.0)
    apart = {"slo:soon", "attained:soon", "slos_met"}
    batch = {name for name in METRICS if name.startswith("batch_")}
    assert {name: both[name] for name in both if name not in batch | apart} == {
        name: alone[name] for name in alone if name not in batch | apart
    }
    assert {alone[name] for name in batch} == {None}
    assert (alone["slo:soon"], alone["attained:soon"], alone["slos_met"]) == (0.0, 1.0, True)
    assert (both["slo:soon"], both["slos_met"]) == (900.0, False)
    assert both["attained:soon"] == pytest.approx(2 / 3)
    assert (both["batch_done_s"], both["batch_unfinished"], both["batch_cost_usd"]) == (
        900.0,
        0,
        6.0,
    )
    mixed.request(
        RequestRecord(
            request_id=10**9 + 3, kind="batch", intended_s=0.0, sent_s=0.0, done_s=950.0, outcome="unfinished"
        )
    )  # fmt: skip
    cut = mixed.row(0.0)
    assert (cut["batch_done_s"], cut["batch_unfinished"]) == (None, 1)
    assert (cut["slo:soon"], cut["attained:soon"], cut["slos_met"]) == (None, 0.5, False)
