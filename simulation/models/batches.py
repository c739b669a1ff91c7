"""Batches in the virtual database: what the server keeps, at what its statements cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from reference_impl.batches.port import (
    Batch,
    BatchPage,
    BatchRequest,
    BatchStore,
    Claim,
    RequestProgress,
    ResultKind,
)
from reference_impl.database.entries import LedgerEntry

if TYPE_CHECKING:
    from simulation.models.database import VirtualPool

__all__ = ["VirtualBatches"]

T = TypeVar("T")


class VirtualBatches:
    """`BatchStore` over a `VirtualPool`: one statement a call, as PostgreSQL's."""

    def __init__(self, pool: VirtualPool) -> None:
        self._pool = pool

    async def create(self, batch: Batch, requests: Sequence[BatchRequest]) -> None:
        await self._pool.run(
            "write", len(requests), lambda ledger: ledger.batches().create(batch, requests)
        )

    async def mark_enqueued(self, batch_id: str) -> None:
        await self._query(lambda store: store.mark_enqueued(batch_id))

    async def not_enqueued(self) -> dict[str, list[int]]:
        return await self._query(lambda store: store.not_enqueued())

    async def get(self, batch_id: str) -> Batch | None:
        return await self._query(lambda store: store.get(batch_id))

    async def of_tenant(
        self,
        tenant: str,
        limit: int,
        *,
        after_id: str | None = None,
        before_id: str | None = None,
    ) -> BatchPage | None:
        return await self._query(
            lambda store: store.of_tenant(tenant, limit, after_id=after_id, before_id=before_id)
        )

    async def claim(self, batch_id: str, index: int) -> Claim | None:
        return await self._query(lambda store: store.claim(batch_id, index))

    async def record(
        self,
        batch_id: str,
        index: int,
        kind: ResultKind,
        result: bytes,
        now: float,
        entry: LedgerEntry | None = None,
    ) -> bool:
        return await self._query(
            lambda store: store.record(batch_id, index, kind, result, now, entry)
        )

    async def expire(self, batch_id: str, result: bytes, now: float) -> None:
        await self._query(lambda store: store.expire(batch_id, result, now))

    async def results(self, batch_id: str, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        return await self._query(lambda store: store.results(batch_id, after, limit))

    async def progress(self, batch_id: str, after: int, limit: int) -> list[RequestProgress]:
        return await self._query(lambda store: store.progress(batch_id, after, limit))

    async def cancel(self, batch_id: str, now: float) -> None:
        await self._query(lambda store: store.cancel(batch_id, now))

    async def delete(self, batch_id: str) -> None:
        await self._query(lambda store: store.delete(batch_id))

    async def _query(self, ask: Callable[[BatchStore], Awaitable[T]]) -> T:
        return await self._pool.run("query", 1, lambda ledger: ask(ledger.batches()))
