"""Joining what each process wrote."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from loadtests.client_rows import ClientRow, RowWriter, rows_file
from loadtests.collect import Collected, collect
from loadtests.stored_batches import StoredBatches
from loadtests.validity import lag_limit_s, validity
from reference_impl.batches.port import RequestProgress
from reference_impl.database.entries import LedgerEntry
from reference_impl.messages import Call
from reference_impl.telemetry import STAGES, RequestTrace, StationSample, SystemEvent
from reference_impl.telemetry.run_folder import read_events, read_requests, read_stations
from reference_impl.telemetry.trace_log import TraceLog
from simulation.scenario.compiled_batches import FIRST_BATCH_ID, CompiledBatch
from simulation.scenario.workload import CompiledWorkload
from tests.loadtests.workloads import compiled, small

WORKLOAD = compiled("{kind: constant, rate_per_s: 1}", horizon_s=4.5)  # due at 1, 2, 3, 4
T0 = 1000.0


def client_row(request_id: int, **fields: Any) -> ClientRow:
    intended_s = float(request_id + 1)
    values: dict[str, Any] = {
        "request_id": request_id,
        "intended_s": intended_s,
        "sent_s": intended_s + 0.1,
        "first_token_s": intended_s + 1.0,
        "done_s": intended_s + 3.0,
        "outcome": "ok",
        "status": 200,
        "output_tokens": 5,
    }
    return ClientRow(**(values | fields))


def write_rows(folder: Path, *rows: ClientRow, injector: int = 0) -> None:
    writer = RowWriter(rows_file(folder, injector))
    for row in rows:
        writer.write(row)
    writer.close()


def write_trace(folder: Path, name: str, request_id: int, attempt: int, **durations: Any) -> None:
    log = TraceLog(folder / f"traces-{name}.jsonl", "gateway" if name == "gateway" else "instance")
    call = Call(
        request_id=request_id,
        attempt=attempt,
        model="m",
        max_tokens=1,
        stream=True,
        trace=RequestTrace(**durations),
    )
    log.record(call)
    log.close()


def write_mock(folder: Path, *attempts: dict[str, Any]) -> None:
    lines = [json.dumps(attempt) + "\n" for attempt in attempts]
    (folder / "mock.jsonl").write_text("".join(lines))


def join(folder: Path, until_s: float = 10.0) -> tuple[Collected, list[dict[Any, Any]]]:
    raw = folder / "raw"
    collected = collect(raw, folder, WORKLOAD, t0_monotonic_s=T0, until_s=until_s)
    rows: list[dict[Any, Any]] = read_requests(folder).to_dict("records")
    return collected, rows


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def test_each_hop_gives_its_own_stages_and_they_add_up(raw: Path) -> None:
    write_rows(raw, client_row(0))
    write_trace(raw, "gateway", 0, 0, cache="miss", instance="i-1", admission_s=0.2, balance_s=0.1)
    # The instance's process measured an admission of its own, which is not the gateway's.
    write_trace(
        raw,
        "i-1",
        0,
        1,
        attempts=2,
        admission_s=9.0,
        retry_wait_s=0.3,
        llm_stream_s=1.0,
        cost_usd=0.5,
    )
    write_mock(
        raw,
        {"request_id": 0, "attempt": 0, "endpoint_s": 0.1, "outcome": "overloaded"},
        {
            "request_id": 0,
            "attempt": 1,
            "endpoint_s": 0.9,
            "drawn_endpoint_s": 0.8,
            "outcome": "ok",
        },
    )
    collected, (row,) = join(raw.parent)
    assert (row["cache"], row["instance"], row["attempts"], row["cost_usd"]) == (
        "miss",
        "i-1",
        2,
        0.5,
    )
    assert (row["admission_s"], row["balance_s"], row["retry_wait_s"]) == (0.2, 0.1, 0.3)
    assert row["endpoint_s"] == 0.9, "of the attempt that answered"
    assert sum(row[stage] for stage in STAGES) == pytest.approx(row["done_s"] - row["intended_s"])
    assert collected.mock_late_p99_s == pytest.approx(0.1)


def test_after_a_failover_the_instance_that_answered_is_joined(raw: Path) -> None:
    write_rows(raw, client_row(0))
    write_trace(raw, "gateway", 0, 0, instance="i-2")
    write_trace(raw, "i-1", 0, 0, llm_stream_s=9.0)
    write_trace(raw, "i-2", 0, 0, llm_stream_s=1.0)
    write_trace(raw, "i-3", 0, 0, llm_stream_s=8.0)
    _, (row,) = join(raw.parent)
    assert row["llm_stream_s"] == 1.0


def test_after_a_retry_of_the_client_its_last_pass_is_joined(raw: Path) -> None:
    write_rows(raw, client_row(0, attempts=2))
    write_trace(raw, "gateway", 0, 0, instance="i-1", admission_s=0.7)
    write_trace(raw, "gateway", 0, 100, instance="i-1", admission_s=0.1)
    write_trace(raw, "i-1", 0, 2, attempts=3, llm_stream_s=0.6)
    write_trace(raw, "i-1", 0, 101, attempts=2, llm_stream_s=0.2)
    write_mock(
        raw,
        {"request_id": 0, "attempt": 2, "endpoint_s": 0.6, "outcome": "ok"},
        {"request_id": 0, "attempt": 101, "endpoint_s": 0.2, "outcome": "ok"},
    )
    _, (row,) = join(raw.parent)
    assert (row["admission_s"], row["llm_stream_s"], row["endpoint_s"]) == (0.1, 0.2, 0.2)


def test_a_hit_has_no_endpoint_time_and_no_attempt(raw: Path) -> None:
    write_rows(raw, client_row(0))
    write_trace(raw, "gateway", 0, 0, cache="l1", cache_s=0.1)
    _, (row,) = join(raw.parent)
    assert (row["cache"], row["attempts"], row["endpoint_s"], row["instance"]) == ("l1", 0, 0.0, "")


def test_rows_of_all_injectors_come_in_order_of_request(raw: Path) -> None:
    write_rows(raw, client_row(3), client_row(0), injector=0)
    write_rows(raw, client_row(2), client_row(1), injector=1)
    collected, rows = join(raw.parent)
    assert [row["request_id"] for row in rows] == [0, 1, 2, 3]
    assert (collected.requests, collected.outcomes, collected.missing) == (4, {"ok": 4}, 0)
    assert [row["input_tokens"] for row in rows] == [50] * 4


def test_arrivals_that_were_due_and_left_no_row_are_missing(raw: Path) -> None:
    write_rows(raw, client_row(0))
    assert join(raw.parent, until_s=3.5)[0].missing == 2


def test_a_request_without_first_token_has_none(raw: Path) -> None:
    write_rows(raw, client_row(0, first_token_s=None, outcome="timeout", status=0))
    _, (row,) = join(raw.parent)
    assert math.isnan(row["first_token_s"])
    assert row["outcome"] == "timeout"


def test_answers_that_no_gateway_traced_are_counted(raw: Path) -> None:
    write_rows(raw, client_row(0), client_row(1), client_row(2, outcome="connection_error"))
    write_trace(raw, "gateway", 0, 0, cache="l1")
    assert join(raw.parent)[0].untraced == 1


def test_a_target_that_traces_nothing_leaves_nothing_untraced(raw: Path) -> None:
    write_rows(raw, client_row(0))
    assert join(raw.parent)[0].untraced == 0


def test_samples_and_events_count_from_the_start_of_the_run(raw: Path) -> None:
    write_rows(raw, client_row(0))
    sample = StationSample(
        t_s=0.0,
        interval_s=1.0,
        station="fleet",
        kind="fleet",
        arrivals=0,
        completions=0,
        busy_s=0.0,
        queue_length=0.0,
        in_service=0.0,
        capacity=1.0,
    )
    at = {"gateway": [T0 + 2.0, T0 - 0.5], "i-1": [T0 + 1.0]}
    for name, instants in at.items():
        lines = [json.dumps({**_plain(sample), "t_s": t_s}) for t_s in instants]
        (raw / f"stations-{name}.jsonl").write_text("\n".join(lines) + "\n{cut")
    event = SystemEvent(t_s=T0 - 1.0, kind="instance", subject="i-1")
    (raw / "events-gateway.jsonl").write_text(json.dumps(_plain(event)) + "\n")
    join(raw.parent)
    assert read_stations(raw.parent)["t_s"].tolist() == [1.0, 2.0], "none from before the start"
    assert [event.t_s for event in read_events(raw.parent)] == [-1.0]


def _plain(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def collected(**fields: Any) -> Collected:
    values: dict[str, Any] = {
        "requests": 10,
        "outcomes": {"ok": 10},
        "missing": 0,
        "overflow": 0,
        "lag_p99_s": 0.001,
        "untraced": 0,
        "mock_late_p99_s": 0.001,
    }
    return Collected(**(values | fields))


PROMISE = small(
    "{kind: constant, rate_per_s: 1}",
    horizon_s=1.0,
    more="slos: [{name: a, metric: latency, quantile: 0.95, limit_s: 2},"
    " {name: b, metric: ttft, quantile: 0.5, limit_s: 0.4},"
    " {name: c, metric: error_rate, limit: 0.01}]",
)


def test_the_lag_may_use_up_a_twentieth_of_the_strictest_promise() -> None:
    assert lag_limit_s(PROMISE) == pytest.approx(0.02)
    assert lag_limit_s(small("{kind: constant, rate_per_s: 1}", horizon_s=1.0)) == 0.05


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lag_p99_s": 0.021}, "dispatch lag (p99 21.0 ms) exceeds 20.0 ms"),
        ({"mock_late_p99_s": 0.03}, "the mock was saturated, its answers came 30.0 ms"),
        ({"overflow": 3}, "3 requests waited"),
        ({"missing": 2}, "2 arrivals are missing"),
    ],
)
def test_a_run_that_may_not_be_believed_says_why(fields: dict[str, Any], said: str) -> None:
    checks, notes = validity(PROMISE, collected(**fields))
    assert checks["valid"] is False
    assert len(notes) == 1
    assert notes[0].startswith("not valid: ")
    assert said in notes[0]


def test_a_run_that_kept_its_instants_is_valid() -> None:
    checks, notes = validity(PROMISE, collected(mock_late_p99_s=math.nan))
    assert (checks["valid"], notes) == (True, ())
    assert checks["mock_late_p99_s"] is None


def night(size: int) -> CompiledWorkload:
    batch = CompiledBatch(
        number=0,
        at_s=2.0,
        poll_s=1.0,
        model="claude-haiku-4-5",
        tenant="reports",
        max_tokens=9,
        input_tokens=np.full(size, 50, dtype=np.int32),
        output_tokens=np.full(size, 5, dtype=np.int32),
    )
    return dataclasses.replace(WORKLOAD, batches=(batch,))


def batch_row(**fields: Any) -> bytes:
    row = {"number": 0, "intended_s": 2.0, "sent_s": 2.1, "batch_id": "b", **fields}
    return json.dumps(row).encode() + b"\n"


def booked(place: int, **fields: Any) -> LedgerEntry:
    values: dict[str, Any] = {"kind": "batch", "attempts": 1, "output_tokens": 5, "cost_nanousd": 7_000_000, "instance": "i-1"}  # fmt: skip
    return LedgerEntry(entry_id=f"b/{place}", at_s=0.0, **(values | fields))


def join_batch(
    folder: Path, size: int, stored: StoredBatches
) -> tuple[Collected, list[dict[Any, Any]]]:
    collected = collect(
        folder / "raw",
        folder,
        night(size),
        t0_monotonic_s=T0,
        t0_unix_s=5000.0,
        until_s=10.0,
        end_s=20.0,
        batches=stored,
    )
    rows = read_requests(folder).to_dict("records")
    return collected, [row for row in rows if row["kind"] == "batch"]


def test_requests_of_a_batch_are_joined_from_ledger_trace_and_mock(raw: Path) -> None:
    first = FIRST_BATCH_ID
    (raw / "batches.jsonl").write_bytes(batch_row())
    write_trace(raw, "i-1", first, 100, queue_wait_s=3.0, llm_first_token_s=1.0, attempts=1)
    write_mock(
        raw,
        {"request_id": first, "attempt": 0, "endpoint_s": 0.1, "outcome": "ok"},
        {"request_id": first, "attempt": 100, "endpoint_s": 0.9, "outcome": "ok"},
    )
    stored = StoredBatches(
        {
            "b": [
                RequestProgress(0, "c0", 2, "succeeded", 5008.0),
                RequestProgress(1, "c1", 1, "errored", 5009.0),
                RequestProgress(2, "c2", 1, "succeeded", 5021.0),
                RequestProgress(3, "c3", 0),
                RequestProgress(4, "c4", 1, "canceled", 5010.0),
                RequestProgress(5, "c5", 0, "expired", 5011.0),
            ]
        },
        {
            "b/0": booked(0, attempts=2),
            "b/1": booked(1, outcome="rate_limited", output_tokens=0, cost_nanousd=0),
            "b/2": booked(2),
        },
    )
    collected, rows = join_batch(raw.parent, 6, stored)
    assert collected.missing == 4, "the single requests, which nobody sent"
    assert [(row["request_id"], row["outcome"], row["done_s"]) for row in rows] == [
        (first, "ok", 8.0),
        (first + 1, "rate_limited", 9.0),
        (first + 2, "unfinished", 20.0),  # recorded after the end of the run
        (first + 3, "unfinished", 20.0),
        (first + 4, "cancelled", 10.0),
        (first + 5, "timeout", 11.0),
    ]
    one = rows[0]
    assert (one["attempts"], one["cost_usd"], one["instance"]) == (2, 0.007, "i-1")
    assert (one["queue_wait_s"], one["endpoint_s"], one["tenant"]) == (3.0, 0.9, "reports")
    assert rows[3]["queue_wait_s"] == pytest.approx(17.9)
    for row in rows:
        stages = [row[stage] for stage in STAGES]
        assert min(stages) >= 0
        assert sum(stages) == pytest.approx(row["done_s"] - row["intended_s"])


def test_a_request_whose_instance_was_killed_before_it_wrote_is_complete_but_for_its_stages(
    raw: Path,
) -> None:
    (raw / "batches.jsonl").write_bytes(batch_row())
    stored = StoredBatches(
        {"b": [RequestProgress(0, "c0", 1, "succeeded", 5008.0)]}, {"b/0": booked(0)}
    )
    _, (row,) = join_batch(raw.parent, 1, stored)
    assert (row["outcome"], row["done_s"], row["cost_usd"]) == ("ok", 8.0, 0.007)
    assert row["other_s"] == pytest.approx(5.9)


def test_a_batch_that_was_refused_for_good_is_a_row_a_request(raw: Path) -> None:
    (raw / "batches.jsonl").write_bytes(batch_row(batch_id="", refused="client_error"))
    _, rows = join_batch(raw.parent, 2, StoredBatches())
    assert [row["outcome"] for row in rows] == ["client_error"] * 2


def test_a_batch_that_nobody_submitted_is_missing(raw: Path) -> None:
    write_rows(raw, *(client_row(k) for k in range(4)))
    collected, rows = join_batch(raw.parent, 3, StoredBatches())
    assert (collected.missing, rows) == (3, [])


def test_a_station_without_bound_is_read_back(raw: Path) -> None:
    sample = StationSample(
        t_s=T0 + 1, interval_s=1.0, station="broker", kind="broker", arrivals=1, completions=0, busy_s=0.0,
        queue_length=1.0, in_service=0.0, capacity=math.inf,
    )  # fmt: skip
    (raw / "stations-gateway.jsonl").write_bytes(msgspec.json.encode(sample) + b"\n")
    join(raw.parent)
    assert read_stations(raw.parent)["capacity"].tolist() == [math.inf]
