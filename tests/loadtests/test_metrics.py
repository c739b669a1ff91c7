"""The injectors' counts: exact enough, mergeable, and taken once."""

from __future__ import annotations

import math

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.client_rows import ClientRow
from loadtests.metrics import ClientMetrics, LogHistogram

VALUES = st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=200)


def histogram(values: list[float]) -> LogHistogram:
    made = LogHistogram()
    for value in values:
        made.record(value)
    return made


@given(VALUES, st.floats(0.01, 1.0))
def test_a_quantile_is_within_half_a_percent_of_the_nearest_rank(
    values: list[float], q: float
) -> None:
    exact = float(np.quantile(values, q, method="inverted_cdf"))
    assert histogram(values).quantile(q) == pytest.approx(exact, rel=0.0051)


@given(VALUES, VALUES)
def test_merging_is_recording_both(one: list[float], other: list[float]) -> None:
    merged = histogram(one)
    merged.merge(histogram(other).buckets)
    both = histogram(one + other)
    assert (merged.buckets, merged.count) == (both.buckets, both.count)


def test_nothing_recorded_has_no_quantile_and_zero_is_zero() -> None:
    assert math.isnan(LogHistogram().quantile(0.5))
    assert histogram([0.0, 0.0, 5.0]).quantile(0.5) == 0.0


def row(**fields: object) -> ClientRow:
    values: dict[str, object] = {
        "request_id": 1,
        "intended_s": 1.0,
        "sent_s": 1.5,
        "first_token_s": 2.0,
        "done_s": 4.0,
        "outcome": "ok",
        "status": 200,
        "output_tokens": 5,
        "input_tokens": 7,
        "cost_usd": 0.25,
    }
    return ClientRow(**(values | fields))  # type: ignore[arg-type]


def test_each_duration_counts_from_where_its_name_says() -> None:
    metrics = ClientMetrics()
    metrics.record(row())
    shown = {name: h.quantile(0.5) for name, h in metrics.durations.items()}
    expected = {
        "latency_s": 3.0,
        "service_s": 2.5,
        "ttft_s": 1.0,
        "ttft_service_s": 0.5,
        "tpot_s": 0.5,
        "lag_s": 0.5,
    }
    assert shown == pytest.approx(expected, rel=0.0051)


def test_a_failed_request_counts_as_an_outcome_and_as_lag_only() -> None:
    metrics = ClientMetrics()
    metrics.record(row(outcome="timeout", first_token_s=None, status=0))
    assert metrics.outcomes == {"timeout": 1}
    assert [name for name, h in metrics.durations.items() if h.count] == ["lag_s"]


def test_reports_of_workers_add_up_at_the_master_after_the_wire() -> None:
    master = ClientMetrics()
    for _ in range(2):
        worker = ClientMetrics()
        worker.record(row())
        worker.record(row(outcome="rate_limited", attempts=2, overflow=True))
        wire = msgpack.packb(worker.take())
        master.merge(msgpack.unpackb(wire, strict_map_key=False))
        assert worker.take()["counts"] == {}, "what was taken is not reported again"
    assert master.outcomes == {"ok": 2, "rate_limited": 2}
    assert master.counts["requests"] == 4
    assert master.counts["attempts"] == 6
    assert master.cost_usd == pytest.approx(1.0)
    assert master.durations["latency_s"].count == 2
