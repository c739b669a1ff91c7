"""Figures of merit against rows whose values one can work out in the head."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from reference_impl.telemetry import RequestRecord
from reports.metrics import derive, hit_ratio, throughput_per_s, window_s
from reports.objectives import attainments, goodput_per_s, lag_allowance_s
from simulation.scenario.schema import SLO


def row(request_id: int, **fields: Any) -> RequestRecord:
    given: dict[str, Any] = {
        "intended_s": float(request_id),
        "sent_s": request_id + 0.1,
        "done_s": request_id + 1.1,
        "outcome": "ok",
        "cache": "miss",
        "endpoint_s": 0.7,
        "first_token_s": request_id + 0.3,
        "output_tokens": 5,
    }
    return RequestRecord(request_id=request_id, **(given | fields))


def frame(*rows: RequestRecord) -> pd.DataFrame:
    names = RequestRecord.__struct_fields__
    return derive(pd.DataFrame([[getattr(r, n) for n in names] for r in rows], columns=list(names)))


def test_latency_counts_from_intended_and_service_from_sent() -> None:
    one = frame(row(3)).iloc[0].to_dict()
    assert one["latency_s"] == pytest.approx(1.1)
    assert one["service_s"] == pytest.approx(1.0)
    assert one["ttft_s"] == pytest.approx(0.3)
    assert one["ttft_sent_s"] == pytest.approx(0.2)


def test_tpot_spreads_the_stream_over_the_tokens_after_the_first() -> None:
    assert frame(row(0))["tpot_s"].iloc[0] == pytest.approx(0.8 / 4)


def test_one_token_and_a_cache_hit_have_no_tpot() -> None:
    assert frame(row(0, output_tokens=1), row(1, cache="l1"))["tpot_s"].isna().all()


def test_added_time_is_what_the_endpoint_did_not_take() -> None:
    assert frame(row(0))["added_s"].iloc[0] == pytest.approx(0.3)


def test_an_answer_without_an_upstream_call_has_no_added_time() -> None:
    assert frame(row(0, cache="coalesced", endpoint_s=0.0))["added_s"].isna().all()


def test_a_refusal_is_not_a_fast_answer() -> None:
    refused = frame(row(0), row(1, outcome="rejected", done_s=1.101))
    assert refused["latency_s"].count() == 1


def test_the_hit_ratio_is_over_look_ups() -> None:
    mixed = frame(row(0), row(1, cache="l1"), row(2, cache="coalesced"), row(3, cache="off"))
    assert hit_ratio(mixed) == pytest.approx(2 / 3)
    assert math.isnan(hit_ratio(frame(row(0, cache="off"))))


def test_rates_are_over_the_arrivals_not_over_the_drain() -> None:
    assert window_s(frame(row(1), row(9, done_s=500.0))) == 9.0


def test_rows_come_back_in_the_order_of_their_ids() -> None:
    assert list(frame(row(2), row(0), row(1))["request_id"]) == [0, 1, 2]


class TestPromises:
    QUICK = SLO(name="quick", metric="latency", quantile=0.5, limit_s=2.0)
    ERRORS = SLO(name="errors", metric="error_rate", limit=0.2)

    def test_a_quantile_of_the_answers_is_held_against_the_limit(self) -> None:
        rows = frame(row(0), row(1, done_s=9.0), row(2), row(3, outcome="timeout"))
        kept, errors = attainments(rows, [self.QUICK, self.ERRORS])
        assert kept.met
        assert kept.value == pytest.approx(1.1)
        assert kept.fraction == 0.5  # of all that arrived: the failure kept nothing
        assert (errors.met, errors.value) == (False, 0.25)

    def test_no_answer_keeps_no_promise(self) -> None:
        (kept,) = attainments(frame(row(0, outcome="timeout")), [self.QUICK])
        assert not kept.met

    def test_goodput_counts_requests_that_met_all_promises(self) -> None:
        # The last is answered in the drain, which counts for neither.
        rows = frame(row(1), row(2, done_s=9.0), row(4, outcome="timeout"), row(8), row(10))
        assert goodput_per_s(rows, [self.QUICK]) == pytest.approx(2 / 10)
        assert goodput_per_s(rows, []) == throughput_per_s(rows) == pytest.approx(3 / 10)

    def test_answers_that_all_came_in_the_drain_tell_no_rate(self) -> None:
        rows = frame(row(1, done_s=9.0), row(2), row(3))
        assert math.isnan(throughput_per_s(rows))
        assert math.isnan(goodput_per_s(rows, [self.QUICK]))

    def test_no_answer_at_all_is_a_rate_of_zero(self) -> None:
        rows = frame(row(1, outcome="timeout"), row(2, outcome="timeout"))
        assert throughput_per_s(rows) == goodput_per_s(rows, [self.QUICK]) == 0.0

    def test_the_lag_is_judged_by_the_tightest_bound_on_an_answer(self) -> None:
        first = SLO(name="first", metric="ttft", quantile=0.9, limit_s=0.8)
        pace = SLO(name="pace", metric="tpot", quantile=0.9, limit_s=0.05)
        assert lag_allowance_s([self.QUICK, first, pace, self.ERRORS]) == 0.8
        assert lag_allowance_s([self.ERRORS]) is None
