"""Batches in the PostgreSQL database of the ledger.

A claim and a result are one statement each: a round trip, and a transaction of its own. Instants at which results came are kept
by request, because a batch's row that every result updated would make its workers wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import asyncpg
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
from reference_impl.database.entries import ENTRY_FIELDS, LedgerEntry
from reference_impl.database.pool import ConnectionPool

__all__ = ["PostgresBatches"]

_COUNTS: Final = ", ".join(
    f"count(*) FILTER (WHERE kind = '{kind}')" for kind in ("processing", *RESULT_KINDS)
)
_COLUMNS: Final = (
    f"b.batch_id, tenant, created_s, expires_s, {_COUNTS}, cancel_initiated_s, max(recorded_s)"
)
_GET: Final = (
    f"SELECT {_COLUMNS} FROM ledger_batches b JOIN ledger_batch_requests USING (batch_id) "  # noqa: S608 - constants
    "WHERE b.batch_id = $1 GROUP BY b.batch_id"
)
# What is told of, a batch that is accepted or a result, must survive a crash of the server, whatever its default is: the setting
# holds for this transaction.
_SURVIVES: Final = "set_config('synchronous_commit', 'on', true)"
_CLAIM: Final = """
    UPDATE ledger_batch_requests r SET runs = runs + 1 FROM ledger_batches b
    WHERE r.batch_id = $1 AND r.number = $2 AND r.kind = 'processing' AND b.batch_id = r.batch_id
    RETURNING runs, tenant, params, created_s, expires_s, cancel_initiated_s IS NOT NULL, custom_id"""
_RECORDED: Final = """
    WITH recorded AS (
        UPDATE ledger_batch_requests
        SET kind = $3, result = $4, recorded_s = $5, params = NULL
        WHERE batch_id = $1 AND number = $2 AND kind = 'processing' RETURNING runs
    )"""
_COUNT_RECORDED: Final = f" SELECT (SELECT count(*) FROM recorded), {_SURVIVES}"  # noqa: S608 - constants
_RECORD: Final = _RECORDED + _COUNT_RECORDED
_VALUES: Final = ", ".join(
    f"${position} + greatest(0, runs - 1)" if field == "attempts" else f"${position}"
    for position, field in enumerate(ENTRY_FIELDS, start=6)
)
_RECORD_AND_BOOK: Final = (
    f"{_RECORDED}, booked AS ("  # noqa: S608 - constants
    f"INSERT INTO ledger_entries ({', '.join(ENTRY_FIELDS)}) SELECT {_VALUES} FROM recorded "
    "ON CONFLICT (entry_id) DO NOTHING RETURNING key_id, cost_nanousd"
    "), spent AS ("
    "UPDATE ledger_budgets b SET spent_nanousd = b.spent_nanousd + booked.cost_nanousd "
    f"FROM booked WHERE b.key_id = booked.key_id){_COUNT_RECORDED}"
)


class PostgresBatches:
    """`BatchStore` over the ledger's pool, which belongs to the ledger."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    async def create(self, batch: Batch, requests: Sequence[BatchRequest]) -> None:
        rows = (
            (batch.batch_id, number, request.custom_id, bytes(request.params))
            for number, request in enumerate(requests)
        )
        async with self._pool.transaction() as connection:
            await connection.execute(
                "INSERT INTO ledger_batches (batch_id, tenant, created_s, expires_s) "  # noqa: S608 - constants
                f"VALUES ($1, $2, $3, $4) RETURNING {_SURVIVES}",
                batch.batch_id,
                batch.tenant,
                batch.created_s,
                batch.expires_s,
            )
            await connection.copy_records_to_table(
                "ledger_batch_requests",
                records=rows,
                columns=("batch_id", "number", "custom_id", "params"),
            )

    async def mark_enqueued(self, batch_id: str) -> None:
        await self._change(
            "UPDATE ledger_batches SET enqueued = true WHERE batch_id = $1", batch_id
        )

    async def not_enqueued(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for batch_id, number in await self._pool.fetch(
            "SELECT batch_id, number FROM ledger_batches JOIN ledger_batch_requests USING (batch_id) "
            "WHERE NOT enqueued AND kind = 'processing' ORDER BY created_s, batch_id, number",
            idempotent=True,
        ):
            found.setdefault(batch_id, []).append(number)
        return found

    async def get(self, batch_id: str) -> Batch | None:
        rows = await self._pool.fetch(_GET, batch_id, idempotent=True)
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
        rows = await self._pool.fetch(
            page_sql(side, _COLUMNS, "$", 'batch_id COLLATE "C"'), *args, idempotent=True
        )
        if not rows and cursor is not None and not await self._has(tenant, cursor):
            return None
        return BatchPage([_batch(row[:-1]) for row in rows], any(row[-1] for row in rows[:1]))

    async def claim(self, batch_id: str, index: int) -> Claim | None:
        rows = await self._pool.fetch(_CLAIM, batch_id, index)
        return Claim(*rows[0]) if rows else None

    async def record(
        self,
        batch_id: str,
        index: int,
        kind: ResultKind,
        result: bytes,
        now: float,
        entry: LedgerEntry | None = None,
    ) -> bool:
        statement = _RECORD if entry is None else _RECORD_AND_BOOK
        costs = () if entry is None else msgspec.structs.astuple(entry)
        rows = await self._pool.fetch(
            statement, batch_id, index, kind, result, now, *costs, idempotent=True
        )
        return bool(rows[0][0])

    async def expire(self, batch_id: str, result: bytes, now: float) -> None:
        await self._change(
            "UPDATE ledger_batch_requests SET kind = 'expired', result = $2, recorded_s = $3, params = NULL "
            "WHERE batch_id = $1 AND kind = 'processing'",
            batch_id,
            result,
            now,
        )

    async def results(self, batch_id: str, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        rows = await self._pool.fetch(
            "SELECT number, custom_id, result FROM ledger_batch_requests "
            "WHERE batch_id = $1 AND number > $2 AND kind != 'processing' ORDER BY number LIMIT $3",
            batch_id,
            after,
            limit,
            idempotent=True,
        )
        return [(number, custom_id, result) for number, custom_id, result in rows]

    async def progress(self, batch_id: str, after: int, limit: int) -> list[RequestProgress]:
        rows = await self._pool.fetch(
            "SELECT number, custom_id, runs, nullif(kind, 'processing'), recorded_s "
            "FROM ledger_batch_requests WHERE batch_id = $1 AND number > $2 ORDER BY number LIMIT $3",
            batch_id,
            after,
            limit,
            idempotent=True,
        )
        return [RequestProgress(*row) for row in rows]

    async def cancel(self, batch_id: str, now: float) -> None:
        await self._change(
            "UPDATE ledger_batches SET cancel_initiated_s = coalesce(cancel_initiated_s, $2) "
            "WHERE batch_id = $1",
            batch_id,
            now,
        )

    async def delete(self, batch_id: str) -> None:
        async with self._pool.transaction() as connection:
            await connection.execute(
                "DELETE FROM ledger_batch_requests WHERE batch_id = $1", batch_id
            )
            await connection.execute("DELETE FROM ledger_batches WHERE batch_id = $1", batch_id)

    async def _has(self, tenant: str, batch_id: str) -> bool:
        rows = await self._pool.fetch(
            "SELECT 1 FROM ledger_batches WHERE tenant = $1 AND batch_id = $2",
            tenant,
            batch_id,
            idempotent=True,
        )
        return bool(rows)

    async def _change(self, sql: str, *args: Any) -> None:
        await self._pool.execute(sql, *args, idempotent=True)


def _batch(row: asyncpg.Record) -> Batch:
    batch = Batch(*row)
    return batch if batch.processing == 0 else msgspec.structs.replace(batch, ended_s=None)
