"""Batches in a SQLite file that several processes of one machine share, or in memory.

The file is in write-ahead mode, so that readers do not wait for a writer, and every call is one transaction. SQLite blocks, so
calls run on a thread of this store's own, in their order.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from reference_impl.batches.port import Batch, BatchRequest, ResultKind

__all__ = ["SqliteBatchStore"]

R = TypeVar("R")

_BUSY_S: Final = 30.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS batches (
    batch_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created_s REAL NOT NULL, expires_s REAL NOT NULL,
    cancel_initiated_s REAL, ended_s REAL, enqueued INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS batches_of_tenant ON batches (tenant, created_s);
CREATE TABLE IF NOT EXISTS requests (
    batch_id TEXT NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, params BLOB,
    kind TEXT NOT NULL DEFAULT 'processing', result BLOB,
    PRIMARY KEY (batch_id, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_by_kind ON requests (batch_id, kind);
"""
_COLUMNS: Final = "batch_id, tenant, created_s, expires_s, cancel_initiated_s, ended_s"


class SqliteBatchStore:
    """A `BatchStore` in the file at `path`; ":memory:" keeps it in this process. Errors are sqlite3's."""

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        # One thread: a connection in memory is one database, and transactions of one process need not compete.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._connection: sqlite3.Connection | None = None

    async def create(self, batch: Batch, requests: Sequence[BatchRequest]) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO batches (batch_id, tenant, created_s, expires_s) VALUES (?, ?, ?, ?)",
                (batch.batch_id, batch.tenant, batch.created_s, batch.expires_s),
            )
            db.executemany(
                "INSERT INTO requests (batch_id, number, custom_id, params) VALUES (?, ?, ?, ?)",
                (
                    (batch.batch_id, number, request.custom_id, bytes(request.params))
                    for number, request in enumerate(requests)
                ),
            )

        await self._run(work)

    async def mark_enqueued(self, batch_id: str) -> None:
        await self._run(
            lambda db: db.execute(
                "UPDATE batches SET enqueued = 1 WHERE batch_id = ?", (batch_id,)
            ).close()
        )

    async def not_enqueued(self) -> list[tuple[str, int, bytes]]:
        return await self._run(
            lambda db: db.execute(
                "SELECT batch_id, number, params FROM requests JOIN batches USING (batch_id) "
                "WHERE enqueued = 0 AND kind = 'processing' ORDER BY created_s, batch_id, number"
            ).fetchall()
        )

    async def get(self, batch_id: str) -> Batch | None:
        def work(db: sqlite3.Connection) -> Batch | None:
            row = db.execute(
                f"SELECT {_COLUMNS} FROM batches WHERE batch_id = ?",  # noqa: S608
                (batch_id,),
            ).fetchone()
            return None if row is None else _batch(db, row)

        return await self._run(work)

    async def of_tenant(self, tenant: str) -> list[Batch]:
        def work(db: sqlite3.Connection) -> list[Batch]:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM batches WHERE tenant = ? "  # noqa: S608
                "ORDER BY created_s DESC, batch_id DESC",
                (tenant,),
            ).fetchall()
            return [_batch(db, row) for row in rows]

        return await self._run(work)

    async def record(
        self, batch_id: str, index: int, kind: ResultKind, result: bytes, now: float
    ) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            recorded = db.execute(
                "UPDATE requests SET kind = ?, result = ?, params = NULL "
                "WHERE batch_id = ? AND number = ? AND kind = 'processing'",
                (kind, result, batch_id, index),
            ).rowcount
            _note_end(db, batch_id, now)
            return recorded == 1

        return await self._run(work)

    async def still_wanted(self, batch_id: str, index: int) -> tuple[float, bool] | None:
        def work(db: sqlite3.Connection) -> tuple[float, bool] | None:
            row = db.execute(
                "SELECT expires_s, cancel_initiated_s IS NOT NULL FROM requests JOIN batches USING (batch_id) "
                "WHERE batch_id = ? AND number = ? AND kind = 'processing'",
                (batch_id, index),
            ).fetchone()
            return None if row is None else (row[0], bool(row[1]))

        return await self._run(work)

    async def expire(self, batch_id: str, result: bytes, now: float) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE requests SET kind = 'expired', result = ?, params = NULL "
                "WHERE batch_id = ? AND kind = 'processing'",
                (result, batch_id),
            )
            _note_end(db, batch_id, now)

        await self._run(work)

    async def results(self, batch_id: str, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        return await self._run(
            lambda db: db.execute(
                "SELECT number, custom_id, result FROM requests "
                "WHERE batch_id = ? AND number > ? AND kind != 'processing' ORDER BY number LIMIT ?",
                (batch_id, after, limit),
            ).fetchall()
        )

    async def cancel(self, batch_id: str, now: float) -> None:
        await self._run(
            lambda db: db.execute(
                "UPDATE batches SET cancel_initiated_s = coalesce(cancel_initiated_s, ?) WHERE batch_id = ?",
                (now, batch_id),
            ).close()
        )

    async def delete(self, batch_id: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM requests WHERE batch_id = ?", (batch_id,))
            db.execute("DELETE FROM batches WHERE batch_id = ?", (batch_id,))

        await self._run(work)

    async def aclose(self) -> None:
        def close() -> None:
            if self._connection is not None:
                self._connection.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], R]) -> R:
        """`work` in one transaction, on the store's thread."""

        def transaction() -> R:
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
            except BaseException:
                db.rollback()
                raise
            db.commit()
            return result

        return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
            self._connection = db
        return self._connection


def _batch(db: sqlite3.Connection, row: tuple[str, str, float, float, float, float]) -> Batch:
    batch_id, tenant, created_s, expires_s, cancel_initiated_s, ended_s = row
    counts = dict(
        db.execute(
            "SELECT kind, count(*) FROM requests WHERE batch_id = ? GROUP BY kind", (batch_id,)
        )
    )
    return Batch(
        batch_id=batch_id,
        tenant=tenant,
        created_s=created_s,
        expires_s=expires_s,
        processing=counts.get("processing", 0),
        succeeded=counts.get("succeeded", 0),
        errored=counts.get("errored", 0),
        canceled=counts.get("canceled", 0),
        expired=counts.get("expired", 0),
        cancel_initiated_s=cancel_initiated_s,
        ended_s=ended_s,
    )


def _note_end(db: sqlite3.Connection, batch_id: str, now: float) -> None:
    db.execute(
        "UPDATE batches SET ended_s = ? WHERE batch_id = ? AND ended_s IS NULL AND NOT EXISTS "
        "(SELECT 1 FROM requests WHERE batch_id = ? AND kind = 'processing')",
        (now, batch_id, batch_id),
    )
