"""Joins what the processes of a live run wrote, each for itself, into the tables that both worlds share.

Clients know the four stamps and the outcome; gateway and instances know durations; the mock knows the endpoint's own time. They
meet by request id and attempt. Only durations cross processes; instants of samples and events are on the machine's monotonic
clock and are shifted by t0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from loadtests.batch_join import BatchJoin, BatchTrace
from loadtests.batch_rows import read_batch_rows
from loadtests.client_rows import ClientRow, read_client_rows
from loadtests.stack import MOCK_LOG
from loadtests.stored_batches import StoredBatches
from reference_impl.messages import ATTEMPT_STRIDE
from reference_impl.telemetry import RequestRecord, RequestTrace, StationSample, SystemEvent
from reference_impl.telemetry.run_folder import RunWriter
from reference_impl.telemetry.run_log import (
    EVENTS_PATTERN,
    STATIONS_PATTERN,
    TRACES_PATTERN,
    read_samples,
)
from reference_impl.telemetry.trace_log import read_traces
from simulation.scenario.compiled_batches import FIRST_BATCH_ID
from simulation.scenario.workload import CompiledWorkload

__all__ = ["Collected", "collect"]

T = TypeVar("T")


class Collected(msgspec.Struct, frozen=True):
    """What a run amounts to.

    Attributes:
        requests: rows written. outcomes: how many of each.
        missing: arrivals that were due and of which no injector wrote anything (a lost worker, a kill).
        overflow: requests that had to wait in line for a place in flight.
        lag_p99_s: dispatch lag (sent - intended), 99th percentile; NaN without requests.
        untraced: requests that were answered `ok` and of which the gateway, if it is ours, wrote nothing.
        mock_late_p99_s: how much longer than drawn the mock's answers took, 99th percentile; NaN if it did not say.
    """

    requests: int
    outcomes: dict[str, int]
    missing: int
    overflow: int
    lag_p99_s: float
    untraced: int
    mock_late_p99_s: float


class _MockRow(msgspec.Struct):
    """The part of a line of the mock's log that is joined."""

    request_id: int
    attempt: int
    endpoint_s: float
    outcome: str
    drawn_endpoint_s: float | None = None


def collect(
    raw: Path,
    out: Path,
    workload: CompiledWorkload,
    *,
    t0_monotonic_s: float,
    until_s: float,
    t0_unix_s: float = math.nan,
    end_s: float = math.inf,
    batches: StoredBatches = StoredBatches(),  # noqa: B008 - immutable
) -> Collected:
    """Write `requests.parquet`, `stations.parquet` and `events.jsonl` into `out`, from what the processes wrote into `raw`.

    `until_s`: requests that are due from 0 to this were sent; `end_s`: results were awaited until then. `batches`: what the ledger
    knows of the batches, whose instants count from `t0_unix_s`. Rows come in order of request id. Raises FileExistsError if
    `out` holds these tables already.
    """
    rows = sorted(read_client_rows(raw), key=lambda row: row.request_id)
    traces, batch_traces = _traces(raw)
    attempts = list(_lines(raw, MOCK_LOG, _MockRow))
    endpoint_s = {(row.request_id, row.attempt): row.endpoint_s for row in attempts}
    outcomes: dict[str, int] = {}
    untraced = 0
    with RunWriter(out) as writer:
        for row in rows:
            trace = traces.get(row.request_id)
            untraced += bool(traces) and trace is None and row.outcome == "ok"
            writer.request(_record(row, workload, trace, endpoint_s))
            outcomes[row.outcome] = outcomes.get(row.outcome, 0) + 1
        submitted = read_batch_rows(raw)
        of_batches = BatchJoin(batches, batch_traces, endpoint_s, t0_unix_s, end_s)
        for batch in workload.batches:
            if batch.number in submitted:
                for record in of_batches.records(batch, submitted[batch.number]):
                    writer.request(record)
        samples = (s for path in sorted(raw.glob(STATIONS_PATTERN)) for s in read_samples(path))
        for sample in sorted(samples, key=_when):
            at_s = sample.t_s - t0_monotonic_s
            if at_s > 0.0:
                writer.station(msgspec.structs.replace(sample, t_s=at_s))
        for event in sorted(_lines(raw, EVENTS_PATTERN, SystemEvent), key=_when):
            writer.event(msgspec.structs.replace(event, t_s=event.t_s - t0_monotonic_s))
    seen = {row.request_id for row in rows}
    due = np.flatnonzero(workload.intended_s < until_s).tolist()  # NaN compares false
    return Collected(
        requests=len(rows),
        outcomes=outcomes,
        missing=sum(request not in seen for request in due)
        + sum(
            len(batch)
            for batch in workload.batches
            if batch.at_s < until_s and batch.number not in submitted
        ),
        overflow=sum(row.overflow for row in rows),
        lag_p99_s=_p99([row.sent_s - row.intended_s for row in rows]),
        untraced=untraced,
        mock_late_p99_s=_p99(_late_s(attempts)),
    )


def _when(row: StationSample | SystemEvent) -> float:
    return row.t_s


def _record(
    row: ClientRow,
    workload: CompiledWorkload,
    trace: _Joined | None,
    endpoint_s: dict[tuple[int, int], float],
) -> RequestRecord:
    k = row.request_id
    joined = RequestTrace(cost_usd=row.cost_usd) if trace is None else trace.trace()
    if trace is not None and trace.instance is not None:
        joined.endpoint_s = endpoint_s.get((k, trace.instance[0]), joined.endpoint_s)
    return RequestRecord.assemble(
        joined,
        request_id=k,
        session_id=int(workload.session_id[k]),
        turn=int(workload.turn[k]),
        tenant=workload.tenants[workload.tenant[k]],
        model=workload.models[workload.model[k]],
        intended_s=row.intended_s,
        sent_s=row.sent_s,
        first_token_s=math.nan if row.first_token_s is None else row.first_token_s,
        done_s=row.done_s,
        outcome=row.outcome,
        status=row.status,
        input_tokens=int(workload.input_tokens[k]),
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
    )


class _Joined(msgspec.Struct):
    """The traces of one request: its gateway's, and that of the instance that the gateway says answered."""

    gateway_attempt: int
    gateway: RequestTrace
    instance: tuple[int, RequestTrace] | None = None

    def trace(self) -> RequestTrace:
        """Each hop's own fields (`RequestTrace` names the owners)."""
        gateway = self.gateway
        if self.instance is None:
            return gateway
        return msgspec.structs.replace(
            self.instance[1],
            cache=gateway.cache,
            instance=gateway.instance,
            admission_s=gateway.admission_s,
            cache_s=gateway.cache_s,
            balance_s=gateway.balance_s,
            database_s=gateway.database_s,
        )


def _traces(folder: Path) -> tuple[dict[int, _Joined], dict[int, BatchTrace]]:
    """Per request: its last pass through the gateway, with the instance that this pass names. Requests of batches apart."""
    of_batches: dict[int, BatchTrace] = {}
    joined: dict[int, _Joined] = {}
    by_instance: list[tuple[str, Path]] = []
    prefix, suffix = TRACES_PATTERN.split("*")
    for path in sorted(folder.glob(TRACES_PATTERN)):
        for row in read_traces(path):
            if row.hop != "gateway":
                by_instance.append((path.name.removeprefix(prefix).removesuffix(suffix), path))
                break
            known = joined.get(row.request_id)
            if known is None or row.attempt >= known.gateway_attempt:
                joined[row.request_id] = _Joined(row.attempt, row.trace)
    for instance_id, path in by_instance:
        for row in read_traces(path):
            if row.request_id >= FIRST_BATCH_ID:
                of_batches[row.request_id] = (row.attempt, row.trace)
                continue
            request = joined.get(row.request_id)
            if request is None or request.gateway.instance != instance_id:
                continue
            # A client's own attempts are a stride apart; the processor counts up from each.
            if row.attempt // ATTEMPT_STRIDE == request.gateway_attempt // ATTEMPT_STRIDE:
                request.instance = (row.attempt, row.trace)
    return joined, of_batches


def _late_s(attempts: list[_MockRow]) -> list[float]:
    """How much longer than drawn each whole answer of the mock took."""
    return [
        row.endpoint_s - row.drawn_endpoint_s
        for row in attempts
        if row.outcome == "ok" and row.drawn_endpoint_s is not None
    ]


def _p99(values: list[float]) -> float:
    return float(np.quantile(values, 0.99)) if values else math.nan


def _lines(folder: Path, pattern: str, kind: type[T]) -> Iterator[T]:
    """The JSON lines of all files of a pattern; a last line that a kill cut short is left out."""
    decoder: Any = msgspec.json.Decoder(kind)
    for path in sorted(folder.glob(pattern)):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield decoder.decode(line)
