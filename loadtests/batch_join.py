"""Joins what is known of the requests of batches: their submitter's row, the ledger's, their instance's trace, the mock's log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from loadtests.batch_rows import BatchRow
from loadtests.stored_batches import StoredBatches
from reference_impl.batches.port import RequestProgress
from reference_impl.batches.records import batch_record
from reference_impl.telemetry import RequestRecord, RequestTrace
from simulation.scenario.compiled_batches import CompiledBatch

__all__ = ["BatchJoin", "BatchTrace"]

# The last attempt of the run that was recorded, and its trace.
BatchTrace = tuple[int, RequestTrace]


class BatchJoin:
    """Makes the rows of batches.

    Args:
        stored: what the ledger knows; its instants count from `t0_unix_s`.
        traces: by request id. endpoint_s: by request id and attempt.
        end_s: what was recorded later came after the end of the run.
    """

    def __init__(
        self,
        stored: StoredBatches,
        traces: Mapping[int, BatchTrace],
        endpoint_s: Mapping[tuple[int, int], float],
        t0_unix_s: float,
        end_s: float,
    ) -> None:
        self._stored = stored
        self._traces = traces
        self._endpoint_s = endpoint_s
        self._t0_unix_s = t0_unix_s
        self._end_s = end_s

    def records(self, batch: CompiledBatch, submitted: BatchRow) -> Iterator[RequestRecord]:
        """A row for every request of `batch`, in their order."""
        known = self._stored.progress.get(submitted.batch_id, [])
        for place in range(len(batch)):
            progress = known[place] if place < len(known) else None
            yield self._record(batch, submitted, place, progress)

    def _record(
        self,
        batch: CompiledBatch,
        submitted: BatchRow,
        place: int,
        progress: RequestProgress | None,
    ) -> RequestRecord:
        request_id = batch.first_id + place
        ended_s = self._end_s
        entry = self._stored.entries.get(f"{submitted.batch_id}/{place}")
        if progress is not None and progress.recorded_s is not None:
            recorded_s = progress.recorded_s - self._t0_unix_s
            if recorded_s <= self._end_s:
                ended_s = recorded_s
            else:
                progress = msgspec.structs.replace(progress, kind=None, recorded_s=None)
                entry = None
        return batch_record(
            progress,
            entry,
            self._trace(request_id),
            request_id=request_id,
            tenant=batch.tenant,
            model=batch.model,
            input_tokens=int(batch.input_tokens[place]),
            intended_s=submitted.intended_s,
            sent_s=submitted.sent_s,
            ended_s=ended_s,
            refused=submitted.refused,
        )

    def _trace(self, request_id: int) -> RequestTrace | None:
        found = self._traces.get(request_id)
        if found is None:
            return None
        attempt, trace = found
        endpoint_s = self._endpoint_s.get((request_id, attempt), trace.endpoint_s)
        return msgspec.structs.replace(trace, endpoint_s=endpoint_s)
