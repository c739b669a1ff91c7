"""Batches in memory: for tests, for trying out, and behind the virtual database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from reference_impl.batches.port import (
    Batch,
    BatchPage,
    BatchRequest,
    Claim,
    RequestProgress,
    ResultKind,
)
from reference_impl.database.batch_pages import side_of
from reference_impl.database.entries import LedgerEntry

__all__ = ["MemoryBatches"]


class _Request:
    __slots__ = ("custom_id", "kind", "params", "recorded_s", "result", "runs")

    def __init__(self, request: BatchRequest) -> None:
        self.custom_id = request.custom_id
        self.params = bytes(request.params)
        self.runs = 0
        self.kind: ResultKind | None = None
        self.result = b""
        self.recorded_s = 0.0


class MemoryBatches:
    """`BatchStore` in dicts. `book`: writes an entry into the ledger that these batches belong to."""

    def __init__(self, book: Callable[[LedgerEntry], object]) -> None:
        self._book = book
        self._batches: dict[str, Batch] = {}
        self._requests: dict[str, list[_Request]] = {}
        self._not_enqueued: dict[str, None] = {}

    async def create(self, batch: Batch, requests: Sequence[BatchRequest]) -> None:
        self._batches[batch.batch_id] = batch
        self._requests[batch.batch_id] = [_Request(request) for request in requests]
        self._not_enqueued[batch.batch_id] = None

    async def mark_enqueued(self, batch_id: str) -> None:
        self._not_enqueued.pop(batch_id, None)

    async def not_enqueued(self) -> dict[str, list[int]]:
        found = {
            batch_id: [n for n, r in enumerate(self._requests[batch_id]) if r.kind is None]
            for batch_id in self._not_enqueued
        }
        return {batch_id: numbers for batch_id, numbers in found.items() if numbers}

    async def get(self, batch_id: str) -> Batch | None:
        batch = self._batches.get(batch_id)
        if batch is None:
            return None
        requests = self._requests[batch_id]
        counts = Counter(request.kind for request in requests)
        return msgspec.structs.replace(
            batch,
            processing=counts[None],
            succeeded=counts["succeeded"],
            errored=counts["errored"],
            canceled=counts["canceled"],
            expired=counts["expired"],
            ended_s=None if counts[None] else max(r.recorded_s for r in requests),
        )

    async def of_tenant(
        self,
        tenant: str,
        limit: int,
        *,
        after_id: str | None = None,
        before_id: str | None = None,
    ) -> BatchPage | None:
        own = [batch for batch in self._batches.values() if batch.tenant == tenant]
        own.sort(key=lambda batch: (batch.created_s, batch.batch_id), reverse=True)
        ids = [batch.batch_id for batch in own]
        side, cursor = side_of(after_id, before_id)
        if cursor is not None:
            if cursor not in ids:
                return None
            place = ids.index(cursor)
            ids = ids[place + 1 :] if side == "after" else ids[:place]
        page = ids[-limit:] if side == "before" else ids[:limit]
        found = [await self.get(batch_id) for batch_id in page]
        return BatchPage([batch for batch in found if batch is not None], len(ids) > limit)

    async def claim(self, batch_id: str, index: int) -> Claim | None:
        request = self._without_result(batch_id, index)
        if request is None:
            return None
        request.runs += 1
        batch = self._batches[batch_id]
        return Claim(
            request.runs,
            batch.tenant,
            request.params,
            batch.created_s,
            batch.expires_s,
            batch.cancel_initiated_s is not None,
            request.custom_id,
        )

    async def record(
        self,
        batch_id: str,
        index: int,
        kind: ResultKind,
        result: bytes,
        now: float,
        entry: LedgerEntry | None = None,
    ) -> bool:
        request = self._without_result(batch_id, index)
        if request is None:
            return False
        request.kind, request.result, request.recorded_s = kind, result, now
        request.params = b""
        if entry is not None:
            attempts = entry.attempts + max(0, request.runs - 1)
            self._book(msgspec.structs.replace(entry, attempts=attempts))
        return True

    async def expire(self, batch_id: str, result: bytes, now: float) -> None:
        for index in range(len(self._requests.get(batch_id, ()))):
            await self.record(batch_id, index, "expired", result, now)

    async def results(self, batch_id: str, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        requests = enumerate(self._requests.get(batch_id, ()))
        found = [(n, r.custom_id, r.result) for n, r in requests if n > after and r.kind]
        return found[:limit]

    async def progress(self, batch_id: str, after: int, limit: int) -> list[RequestProgress]:
        requests = self._requests.get(batch_id, [])
        return [
            self.progress_of(batch_id, index)
            for index in range(max(0, after + 1), min(len(requests), after + 1 + limit))
        ]

    def progress_of(self, batch_id: str, index: int) -> RequestProgress:
        """`progress` of one request, at once."""
        request = self._requests[batch_id][index]
        recorded_s = request.recorded_s if request.kind else None
        return RequestProgress(index, request.custom_id, request.runs, request.kind, recorded_s)

    async def cancel(self, batch_id: str, now: float) -> None:
        batch = self._batches.get(batch_id)
        if batch is not None and batch.cancel_initiated_s is None:
            self._batches[batch_id] = msgspec.structs.replace(batch, cancel_initiated_s=now)

    async def delete(self, batch_id: str) -> None:
        self._batches.pop(batch_id, None)
        self._requests.pop(batch_id, None)
        self._not_enqueued.pop(batch_id, None)

    def _without_result(self, batch_id: str, index: int) -> _Request | None:
        requests = self._requests.get(batch_id, [])
        if not 0 <= index < len(requests) or requests[index].kind is not None:
            return None
        return requests[index]
