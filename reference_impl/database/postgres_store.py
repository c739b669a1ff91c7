"""The ledger in PostgreSQL.

Rows come in by COPY, the fastest way there is (facts of `docs/database.md`). COPY cannot ignore a row that exists, so a
batch that meets one is written again by `INSERT ... ON CONFLICT DO NOTHING` over arrays. Every transaction locks rows of
budgets in the order of their keys and before those of holds, so no two wait for each other in a circle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final

import asyncpg

from reference_impl.batches.port import BatchStore
from reference_impl.database.aggregates import POSTGRES_DAY, spend_sql, spends
from reference_impl.database.entries import (
    ENTRY_FIELDS,
    EntryBatch,
    KeyBudget,
    LedgerEntry,
)
from reference_impl.database.migrations import migrate_postgres
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.port import Grant, Group, Spend
from reference_impl.database.postgres_batches import PostgresBatches
from reference_impl.database.postgres_errors import FOREIGN, translated
from reference_impl.telemetry import StationSample

__all__ = ["PostgresLedger"]

PAGE: Final = 10_000
_COLUMNS: Final = ", ".join(ENTRY_FIELDS)
_ROW_OF = attrgetter(*ENTRY_FIELDS)
_TYPES: Final = {str: "text[]", int: "bigint[]", float: "double precision[]"}
_ARRAYS: Final = ", ".join(
    f"${position}::{_TYPES[kind]}"
    for position, kind in enumerate((str, float, *[str] * 5, *[int] * 6, float, str), start=1)
)
_INSERT_NEW: Final = (
    f"INSERT INTO ledger_entries ({_COLUMNS}) SELECT * FROM unnest({_ARRAYS}) "  # noqa: S608 - constants
    "ON CONFLICT (entry_id) DO NOTHING RETURNING key_id, cost_nanousd"
)
_CLAIM: Final = """
    INSERT INTO ledger_writers AS w (writer, sequence) VALUES ($1, $2)
    ON CONFLICT (writer) DO UPDATE SET sequence = excluded.sequence, at = now()
    WHERE w.sequence < excluded.sequence RETURNING true"""
_LOCK_BUDGETS: Final = (
    "SELECT FROM ledger_budgets WHERE key_id = ANY($1) ORDER BY key_id FOR UPDATE"
)
# What was spent and what is released, in one statement: the locks on budgets are held for two round trips and no longer,
# because reservations of the same keys wait for them.
_BOOK: Final = """
    WITH asked AS (
        SELECT h.hold, h.key_id, least(h.held_nanousd, a.nanousd) AS taken
        FROM unnest($3::text[], $4::text[], $5::bigint[]) AS a (hold, key_id, nanousd)
        JOIN ledger_holds h USING (hold, key_id)
    ), released AS (
        UPDATE ledger_holds h SET held_nanousd = h.held_nanousd - asked.taken
        FROM asked WHERE h.hold = asked.hold AND h.key_id = asked.key_id
    )
    UPDATE ledger_budgets b
    SET spent_nanousd = b.spent_nanousd + t.cost, held_nanousd = b.held_nanousd - t.taken
    FROM (
        SELECT key_id, sum(cost)::bigint AS cost, sum(taken)::bigint AS taken FROM (
            SELECT key_id, cost, 0 AS taken FROM unnest($1::text[], $2::bigint[]) AS s (key_id, cost)
            UNION ALL SELECT key_id, 0, taken FROM asked
        ) u GROUP BY key_id
    ) t WHERE b.key_id = t.key_id"""
_RENEW: Final = """
    UPDATE ledger_holds h SET ends_at = now() + h.hold_s * interval '1 second'
    FROM unnest($1::text[], $2::text[]) AS r (hold, key_id)
    WHERE h.hold = r.hold AND h.key_id = r.key_id"""
# One statement and so one round trip. The condition and the new values are read from the locked row, so that concurrent
# reservations follow each other. Without a budget: no row. Refused: granted is 0 and nothing else changes.
_RESERVE: Final = """
    WITH granted AS (
        UPDATE ledger_budgets SET
            granted_nanousd = CASE
                WHEN limit_nanousd - spent_nanousd - held_nanousd >= 4 * $4::bigint THEN $4
                WHEN limit_nanousd - spent_nanousd - held_nanousd >= $3::bigint THEN $3
                ELSE 0 END,
            held_nanousd = held_nanousd + CASE
                WHEN limit_nanousd - spent_nanousd - held_nanousd >= 4 * $4 THEN $4
                WHEN limit_nanousd - spent_nanousd - held_nanousd >= $3 THEN $3
                ELSE 0 END
        WHERE key_id = $1 RETURNING granted_nanousd
    ), held AS (
        INSERT INTO ledger_holds AS h (hold, key_id, held_nanousd, hold_s, ends_at)
        SELECT $2, $1, granted_nanousd, $5, now() + $5 * interval '1 second'
        FROM granted WHERE granted_nanousd > 0
        ON CONFLICT (key_id, hold) DO UPDATE SET
            held_nanousd = h.held_nanousd + excluded.held_nanousd,
            hold_s = excluded.hold_s, ends_at = excluded.ends_at
    )
    SELECT granted_nanousd FROM granted"""
_END_HOLDS: Final = """
    WITH ended AS (
        DELETE FROM ledger_holds WHERE key_id = $1 AND ends_at <= now() RETURNING held_nanousd
    )
    UPDATE ledger_budgets SET held_nanousd = held_nanousd - s.held
    FROM (SELECT coalesce(sum(held_nanousd), 0)::bigint AS held FROM ended) s
    WHERE key_id = $1 AND s.held > 0"""


class PostgresLedger:
    """`LedgerStore` over a pool, which belongs to it."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool

    async def open(self) -> None:
        await self.pool.initialize()
        async with self.pool.acquire() as connection:
            try:
                await migrate_postgres(connection)
            except FOREIGN as error:
                raise translated(error, "migrating the ledger") from error

    async def write(self, batch: EntryBatch) -> int:
        async with self.pool.transaction() as connection:
            # What is reported as written must survive a crash of the server, whatever its default is.
            await connection.execute("SET LOCAL synchronous_commit = on")
            if not await connection.fetchval(_CLAIM, batch.writer, batch.sequence):
                return 0
            new = 0
            costs: dict[str, int] = {}
            if batch.entries:
                new, costs = await _insert(connection, batch.entries)
            keys = sorted({*costs, *(key_id for _, key_id, _ in batch.releases)})
            if keys:
                await connection.execute(_LOCK_BUDGETS, keys)
                releases = _columns(batch.releases, 3)
                await connection.execute(_BOOK, list(costs), list(costs.values()), *releases)
            if batch.renewals:
                await connection.execute(_RENEW, *_columns(batch.renewals, 2))
            return new

    async def reserve(
        self, key_id: str, hold: str, need_nanousd: int, want_nanousd: int, hold_s: float
    ) -> Grant:
        want = max(need_nanousd, want_nanousd)
        arguments = (key_id, hold, need_nanousd, want, hold_s)
        rows = await self.pool.fetch(_RESERVE, *arguments)
        if not rows:
            return Grant(0, budgeted=False)
        if rows[0][0] == 0 and need_nanousd > 0:
            async with self.pool.transaction() as connection:
                await connection.execute(_LOCK_BUDGETS, [key_id])
                ended = await connection.execute(_END_HOLDS, key_id)
            if not ended.endswith(" 0"):
                rows = await self.pool.fetch(_RESERVE, *arguments)
        return Grant(rows[0][0] if rows else 0, budgeted=bool(rows))

    async def set_budget(self, key_id: str, limit_nanousd: int | None) -> None:
        async with self.pool.transaction() as connection:
            if limit_nanousd is None:
                await connection.execute("DELETE FROM ledger_budgets WHERE key_id = $1", key_id)
                await connection.execute("DELETE FROM ledger_holds WHERE key_id = $1", key_id)
                return
            changed = await connection.execute(
                "UPDATE ledger_budgets SET limit_nanousd = $2 WHERE key_id = $1",
                key_id,
                limit_nanousd,
            )
            if changed.endswith(" 0"):
                # Writers that are under way have not seen this budget: wait for them, so that the sum is whole.
                await connection.execute("LOCK TABLE ledger_entries IN SHARE MODE")
                await connection.execute(
                    "INSERT INTO ledger_budgets (key_id, limit_nanousd, spent_nanousd) "
                    "SELECT $1, $2, coalesce(sum(cost_nanousd), 0)::bigint "
                    "FROM ledger_entries WHERE key_id = $1 "
                    "ON CONFLICT (key_id) DO UPDATE SET limit_nanousd = excluded.limit_nanousd",
                    key_id,
                    limit_nanousd,
                )

    async def budgets(self) -> list[KeyBudget]:
        rows = await self.pool.fetch(
            "SELECT key_id, limit_nanousd, spent_nanousd, held_nanousd FROM ledger_budgets "
            'ORDER BY key_id COLLATE "C"',
            idempotent=True,
        )
        return [KeyBudget(*row) for row in rows]

    def batches(self) -> BatchStore:
        return PostgresBatches(self.pool)

    async def spend(self, group: Group, *, since_s: float = 0.0) -> list[Spend]:
        sql = spend_sql(group, POSTGRES_DAY, "$1")
        return spends(await self.pool.fetch(sql, since_s, idempotent=True))

    async def entries(self, *, since_s: float = 0.0) -> AsyncIterator[list[LedgerEntry]]:
        after = ""
        query = (
            f"SELECT {_COLUMNS} FROM ledger_entries WHERE entry_id > $1 AND at_s >= $2 "  # noqa: S608 - constants
            f"ORDER BY entry_id LIMIT {PAGE}"
        )
        while rows := await self.pool.fetch(query, after, since_s, idempotent=True):
            yield [LedgerEntry(**dict(row)) for row in rows]
            after = rows[-1]["entry_id"]

    def samples(self, *, origin_s: float = 0.0) -> list[StationSample]:
        return [self.pool.sample(origin_s=origin_s)]

    async def aclose(self) -> None:
        await self.pool.close()


async def _insert(
    connection: asyncpg.Connection, entries: Sequence[LedgerEntry]
) -> tuple[int, dict[str, int]]:
    """Insert entries; how many were new, and their costs by key."""
    costs: dict[str, int] = defaultdict(int)
    # In order of id: two writers with the same rows wait for each other's index entries, and must not do so in a circle.
    rows = sorted(_ROW_OF(entry) for entry in entries)
    try:
        async with (
            connection.transaction()
        ):  # a savepoint: a row that exists must not undo the batch
            await connection.copy_records_to_table(
                "ledger_entries", records=rows, columns=ENTRY_FIELDS
            )
    except asyncpg.UniqueViolationError:
        inserted = await connection.fetch(_INSERT_NEW, *zip(*rows, strict=True))
        for key_id, cost in inserted:
            costs[key_id] += cost
        return len(inserted), dict(costs)
    for entry in entries:
        costs[entry.key_id] += entry.cost_nanousd
    return len(rows), dict(costs)


def _columns(rows: Iterable[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Rows as columns, for `unnest`; empty columns where there are no rows."""
    rows = list(rows)
    return [[row[position] for row in rows] for position in range(width)]
