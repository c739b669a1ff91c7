"""Records on disk: what goes in comes out, whole or not at all."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.messages import Call
from reference_impl.telemetry import STAGES, RequestRecord, RequestTrace, StationSample, SystemEvent
from reference_impl.telemetry.run_folder import RunWriter, read_events, read_requests, read_stations
from reference_impl.telemetry.trace_log import TraceLog, read_traces

DURATION = st.floats(0, 1e4, allow_nan=False)


def stage_sum(record: RequestRecord) -> float:
    return math.fsum(getattr(record, stage) for stage in STAGES)


@given(st.lists(DURATION, min_size=10, max_size=10), DURATION, DURATION)
def test_stages_add_up_to_the_latency_and_none_is_negative_whatever_the_hops_measured(
    durations: list[float], lag_s: float, service_s: float
) -> None:
    """Invariant 2."""
    trace = RequestTrace()
    for name, value in zip(STAGES[1:-1], durations, strict=True):
        setattr(trace, name, value)

    record = RequestRecord.assemble(
        trace,
        request_id=1,
        intended_s=5.0,
        sent_s=5.0 + lag_s,
        done_s=5.0 + lag_s + service_s,
        outcome="ok",
    )

    assert stage_sum(record) == pytest.approx(record.done_s - record.intended_s, abs=1e-6)
    assert min(getattr(record, stage) for stage in STAGES) >= 0.0


def test_what_no_hop_accounts_for_is_a_stage_of_its_own() -> None:
    record = RequestRecord.assemble(
        RequestTrace(llm_first_token_s=0.5, llm_stream_s=1.0),
        request_id=1,
        intended_s=1.0,
        sent_s=1.25,
        done_s=3.0,
        outcome="ok",
    )
    assert (record.lag_s, record.other_s) == (0.25, 0.25)


def test_a_client_that_leaves_early_has_the_excess_taken_off_the_last_stages() -> None:
    record = RequestRecord.assemble(
        RequestTrace(instance_wait_s=1.0, llm_first_token_s=1.0, llm_stream_s=0.5),
        request_id=1,
        intended_s=0.0,
        sent_s=0.0,
        done_s=1.75,
        outcome="cancelled",
    )
    assert (record.instance_wait_s, record.llm_first_token_s, record.llm_stream_s) == (
        1.0,
        0.75,
        0.0,
    )


def test_a_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        RequestRecord(
            request_id=i,
            intended_s=i,
            sent_s=i,
            done_s=i + 1.5,
            outcome="ok",
            instance=f"i-{i % 3}",
        )
        for i in range(20_000)
    ]
    with RunWriter(tmp_path / "run") as run:
        for row in rows:
            run.request(row)
        run.station(
            StationSample(
                t_s=1.0,
                interval_s=1.0,
                station="gateway cpu",
                kind="cpu",
                arrivals=3,
                completions=2,
                busy_s=0.5,
                queue_length=0.25,
                in_service=0.5,
                capacity=math.inf,
            )
        )
        run.event(SystemEvent(t_s=2.0, kind="scaling", subject="fleet", detail={"delta": 2}))

    requests = read_requests(tmp_path / "run")
    assert list(requests.columns) == list(RequestRecord.__struct_fields__)
    assert len(requests) == len(rows)
    assert requests.iloc[12_345].to_dict() | {"first_token_s": None} == {
        f: getattr(rows[12_345], f) for f in RequestRecord.__struct_fields__
    } | {"first_token_s": None}
    assert read_stations(tmp_path / "run")["capacity"].tolist() == [math.inf]
    assert [e.detail for e in read_events(tmp_path / "run")] == [{"delta": 2}]


def test_a_folder_that_holds_a_run_is_never_written_over(tmp_path: Path) -> None:
    RunWriter(tmp_path).close()
    with pytest.raises(FileExistsError, match="already holds a run"):
        RunWriter(tmp_path)


@pytest.mark.parametrize("left", ["events.jsonl", "stations.parquet", "requests.parquet.partial"])
def test_what_a_killed_run_left_is_not_written_over(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("mine")
    with pytest.raises(FileExistsError, match=re.escape(f"already holds a run ({left})")):
        RunWriter(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(left, "mine")]


def test_a_table_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    run = RunWriter(tmp_path)
    run.request(RequestRecord(request_id=0, intended_s=0, sent_s=0, done_s=1, outcome="ok"))
    assert not (tmp_path / "requests.parquet").exists()
    run.close()
    assert len(read_requests(tmp_path)) == 1


def test_a_trace_log_that_a_kill_cut_short_loses_only_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    log = TraceLog(path, "gateway")
    for i in range(3):
        log.record(
            Call(
                request_id=i, model="m", max_tokens=1, stream=False, trace=RequestTrace(cache="l1")
            )
        )
    log.close()
    path.write_bytes(path.read_bytes()[:-5])

    assert [(row.hop, row.request_id, row.trace.cache) for row in read_traces(path)] == [
        ("gateway", 0, "l1"),
        ("gateway", 1, "l1"),
    ]
