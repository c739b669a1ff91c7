"""Batches in the SQLite file of the ledger: each call is one transaction of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from reference_impl.batches.port import (
    RESULT_KINDS,
    Batch,
    BatchPage,
    BatchRequest,
    Claim,
    RequestProgress,
    ResultKind,
)
from reference_impl.database.batch_pages import page_sql, side_of
from reference_impl.database.entries import LedgerEntry
from reference_impl.database.sqlite_store import SqliteLedger, book_entries

__all__ = ["SqliteBatches"]

_COUNTS: Final = ", ".join(f"sum(kind = '{kind}')" for kind in ("processing", *RESULT_KINDS))
_COLUMNS: Final = (
    f"b.batch_id, tenant, created_s, expires_s, {_COUNTS}, cancel_initiated_s, max(recorded_s)"
)
_GET: Final = (
    f"SELECT {_COLUMNS} FROM ledger_batches b JOIN ledger_batch_requests USING (batch_id) "  # noqa: S608 - constants
    "WHERE b.batch_id = ? GROUP BY b.batch_id"
)


class SqliteBatches:
    """`BatchStore` in an open `SqliteLedger`, to which the connection belongs."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self._ledger = ledger

    async def create(self, batch: Batch, requests: Sequence[BatchRequest]) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO ledger_batches (batch_id, tenant, created_s, expires_s) "
                "VALUES (?, ?, ?, ?)",
                (batch.batch_id, batch.tenant, batch.created_s, batch.expires_s),
            )
            db.executemany(
                "INSERT INTO ledger_batch_requests (batch_id, number, custom_id, params) "
                "VALUES (?, ?, ?, ?)",
                (
                    (batch.batch_id, number, request.custom_id, bytes(request.params))
                    for number, request in enumerate(requests)
                ),
            )

        await self._ledger.transaction(work)

    async def mark_enqueued(self, batch_id: str) -> None:
        await self._change("UPDATE ledger_batches SET enqueued = 1 WHERE batch_id = ?", batch_id)

    async def not_enqueued(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for batch_id, number in await self._ledger.query(
            "SELECT batch_id, number FROM ledger_batches JOIN ledger_batch_requests USING (batch_id) "
            "WHERE NOT enqueued AND kind = 'processing' ORDER BY created_s, batch_id, number"
        ):
            found.setdefault(batch_id, []).append(number)
        return found

    async def get(self, batch_id: str) -> Batch | None:
        rows = await self._ledger.query(_GET, batch_id)
        return _batch(rows[0]) if rows else None

    async def of_tenant(
        self,
        tenant: str,
        limit: int,
        *,
        after_id: str | None = None,
        before_id: str | None = None,
    ) -> BatchPage | None:
        side, cursor = side_of(after_id, before_id)
        args = (tenant, limit) if cursor is None else (tenant, limit, cursor)
        rows = await self._ledger.query(page_sql(side, _COLUMNS, "?"), *args)
        if not rows and cursor is not None and not await self._has(tenant, cursor):
            return None
        return BatchPage([_batch(row[:-1]) for row in rows], any(row[-1] for row in rows[:1]))

    async def claim(self, batch_id: str, index: int) -> Claim | None:
        def work(db: sqlite3.Connection) -> Claim | None:
            row = db.execute(
                "UPDATE ledger_batch_requests SET runs = runs + 1 "
                "WHERE batch_id = ? AND number = ? AND kind = 'processing' RETURNING runs, params, custom_id",
                (batch_id, index),
            ).fetchone()
            if row is None:
                return None
            tenant, created_s, expires_s, is_canceled = db.execute(
                "SELECT tenant, created_s, expires_s, cancel_initiated_s IS NOT NULL "
                "FROM ledger_batches WHERE batch_id = ?",
                (batch_id,),
            ).fetchone()
            runs, params, custom_id = row
            return Claim(runs, tenant, params, created_s, expires_s, bool(is_canceled), custom_id)

        return await self._ledger.transaction(work)

    async def record(
        self,
        batch_id: str,
        index: int,
        kind: ResultKind,
        result: bytes,
        now: float,
        entry: LedgerEntry | None = None,
    ) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            row = db.execute(
                "UPDATE ledger_batch_requests SET kind = ?, result = ?, recorded_s = ?, params = NULL "
                "WHERE batch_id = ? AND number = ? AND kind = 'processing' RETURNING runs",
                (kind, result, now, batch_id, index),
            ).fetchone()
            if row is not None and entry is not None:
                attempts = entry.attempts + max(0, row[0] - 1)
                book_entries(db, [msgspec.structs.replace(entry, attempts=attempts)])
            return row is not None

        return await self._ledger.transaction(work)

    async def expire(self, batch_id: str, result: bytes, now: float) -> None:
        await self._change(
            "UPDATE ledger_batch_requests SET kind = 'expired', result = ?, recorded_s = ?, params = NULL "
            "WHERE batch_id = ? AND kind = 'processing'",
            result,
            now,
            batch_id,
        )

    async def results(self, batch_id: str, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        rows = await self._ledger.query(
            "SELECT number, custom_id, result FROM ledger_batch_requests "
            "WHERE batch_id = ? AND number > ? AND kind != 'processing' ORDER BY number LIMIT ?",
            batch_id,
            after,
            limit,
        )
        return [(number, custom_id, result) for number, custom_id, result in rows]

    async def progress(self, batch_id: str, after: int, limit: int) -> list[RequestProgress]:
        rows = await self._ledger.query(
            "SELECT number, custom_id, runs, nullif(kind, 'processing'), recorded_s "
            "FROM ledger_batch_requests WHERE batch_id = ? AND number > ? ORDER BY number LIMIT ?",
            batch_id,
            after,
            limit,
        )
        return [RequestProgress(*row) for row in rows]

    async def cancel(self, batch_id: str, now: float) -> None:
        await self._change(
            "UPDATE ledger_batches SET cancel_initiated_s = coalesce(cancel_initiated_s, ?) "
            "WHERE batch_id = ?",
            now,
            batch_id,
        )

    async def delete(self, batch_id: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM ledger_batch_requests WHERE batch_id = ?", (batch_id,))
            db.execute("DELETE FROM ledger_batches WHERE batch_id = ?", (batch_id,))

        await self._ledger.transaction(work)

    async def _has(self, tenant: str, batch_id: str) -> bool:
        rows = await self._ledger.query(
            "SELECT 1 FROM ledger_batches WHERE tenant = ? AND batch_id = ?",
            tenant,
            batch_id,
        )
        return bool(rows)

    async def _change(self, sql: str, *args: object) -> None:
        await self._ledger.transaction(lambda db: db.execute(sql, args).close())


def _batch(row: tuple[Any, ...]) -> Batch:
    batch = Batch(*row)
    return batch if batch.processing == 0 else msgspec.structs.replace(batch, ended_s=None)
