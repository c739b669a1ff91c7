"""The ledger in PostgreSQL.

Rows come in by COPY, the fastest way there is (facts of `docs/database.md`). COPY cannot ignore a row that exists, so a
batch that meets one is written again by `INSERT ... ON CONFLICT DO NOTHING` over arrays. Every transaction locks rows of
budgets in the order of their keys and before those of holds, so no two wait for each other in a circle.

Reservations of the same keys wait for a writer's locks, and hold a connection meanwhile. So a batch travels in four round
trips (begin, claim, rows, booking), and the locks are taken, used and given up within the last: COMMIT is in the same message.
A message of several statements takes no arguments, so what is to be booked goes ahead of it, with the claim, into a setting of
the transaction.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any, Final

import asyncpg
import msgspec

from reference_impl.batches.port import BatchStore
from reference_impl.database.aggregates import POSTGRES_DAY, spend_sql, spends
from reference_impl.database.entries import (
    ENTRY_FIELDS,
    UNCOUNTED,
    EntryBatch,
    KeyBudget,
    LedgerEntry,
)
from reference_impl.database.migrations import migrate_postgres
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.port import NOTICE_PART, Grant, Group, Spend
from reference_impl.database.postgres_batches import PostgresBatches
from reference_impl.database.postgres_errors import FOREIGN, translated
from reference_impl.telemetry import StationSample

__all__ = ["PostgresLedger"]

PAGE: Final = 10_000
_COLUMNS: Final = ", ".join(ENTRY_FIELDS)
_ENTRY_ID = attrgetter("entry_id")
_TYPES: Final = {str: "text[]", int: "bigint[]", float: "double precision[]"}
_ARRAYS: Final = ", ".join(
    f"${position}::{_TYPES[kind]}"
    for position, kind in enumerate((str, float, *[str] * 5, *[int] * 6, float, str), start=1)
)
_INSERT_NEW: Final = (
    f"INSERT INTO ledger_entries ({_COLUMNS}) SELECT * FROM unnest({_ARRAYS}) "  # noqa: S608 - constants
    "ON CONFLICT (entry_id) DO NOTHING RETURNING key_id, cost_nanousd"
)
# Claims the batch, and prepares its end: what is reported as written must survive a crash of the server, whatever its default
# is, and what is to be booked is kept for the last message.
_CLAIM: Final = """
    INSERT INTO ledger_writers AS w (writer, sequence) VALUES ($1, $2)
    ON CONFLICT (writer) DO UPDATE SET sequence = excluded.sequence, at = now()
    WHERE w.sequence < excluded.sequence
    RETURNING set_config('synchronous_commit', 'on', true), set_config('twinload.booking', $3, true)"""
# The same for a batch that needs no claim.
_PREPARE: Final = """
    SELECT set_config('synchronous_commit', 'on', true), set_config('twinload.booking', $1, true)"""
_REPLACE_BOOKING: Final = "SELECT set_config('twinload.booking', $1, true)"
_BOOKING: Final = "current_setting('twinload.booking')::json"
_LOCK_BUDGETS: Final = f"""
    SELECT FROM ledger_budgets
    WHERE key_id = ANY (ARRAY(SELECT json_array_elements_text({_BOOKING} -> 'keys')))
    ORDER BY key_id FOR UPDATE"""
_BOOK: Final = f"""
    WITH asked AS (
        SELECT h.hold, h.key_id, h.held_nanousd, least(h.held_nanousd, (a ->> 2)::bigint) AS taken
        FROM json_array_elements({_BOOKING} -> 'releases') AS a
        JOIN ledger_holds h ON h.hold = a ->> 0 AND h.key_id = a ->> 1
    ), released AS (
        UPDATE ledger_holds h SET held_nanousd = h.held_nanousd - asked.taken
        FROM asked
        WHERE h.hold = asked.hold AND h.key_id = asked.key_id AND asked.taken < asked.held_nanousd
    ), emptied AS (
        DELETE FROM ledger_holds h USING asked
        WHERE h.hold = asked.hold AND h.key_id = asked.key_id AND asked.taken = asked.held_nanousd
    )
    UPDATE ledger_budgets b
    SET spent_nanousd = b.spent_nanousd + t.cost, held_nanousd = b.held_nanousd - t.taken
    FROM (
        SELECT key_id, sum(cost)::bigint AS cost, sum(taken)::bigint AS taken FROM (
            SELECT key AS key_id, value::bigint AS cost, 0 AS taken
            FROM json_each_text({_BOOKING} -> 'costs')
            UNION ALL SELECT key_id, 0, taken FROM asked
        ) u GROUP BY key_id
    ) t WHERE b.key_id = t.key_id"""  # noqa: S608 - constants
_RENEW: Final = f"""
    UPDATE ledger_holds h SET ends_at = now() + h.hold_s * interval '1 second', noticed = false
    FROM json_array_elements({_BOOKING} -> 'renewals') AS r
    WHERE h.hold = r ->> 0 AND h.key_id = r ->> 1"""  # noqa: S608 - constants
# One statement and so one round trip. The condition and the new values are read from the locked row, so that concurrent
# reservations follow each other. Without a budget: no row. Refused: granted is 0, nothing else changes, and the second column
# says whether holds are overdue that may give money back.
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
            hold_s = excluded.hold_s, ends_at = excluded.ends_at, noticed = false
    )
    SELECT granted_nanousd, granted_nanousd = 0 AND EXISTS (
        SELECT FROM ledger_holds WHERE key_id = $1 AND ends_at <= now()
    ) FROM granted"""
_LOCK_BUDGET: Final = "SELECT FROM ledger_budgets WHERE key_id = $1 FOR UPDATE"
_END_HOLDS: Final = f"""
    WITH ended AS (
        DELETE FROM ledger_holds WHERE key_id = $1 AND ends_at <= now() AND noticed
        RETURNING held_nanousd
    ), noticed AS (
        UPDATE ledger_holds
        SET noticed = true, ends_at = now() + hold_s / {NOTICE_PART} * interval '1 second'
        WHERE key_id = $1 AND ends_at <= now() AND NOT noticed
    )
    UPDATE ledger_budgets SET held_nanousd = held_nanousd - s.held
    FROM (SELECT coalesce(sum(held_nanousd), 0)::bigint AS held FROM ended) s
    WHERE key_id = $1 AND s.held > 0"""  # noqa: S608 - constant


class PostgresLedger:
    """`LedgerStore` over a pool, which belongs to it."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool

    async def open(self) -> None:
        await self.pool.initialize()
        async with self.pool.acquire(stateless=True) as connection:
            try:
                await migrate_postgres(connection)
            except FOREIGN as error:
                raise translated(error, "migrating the ledger") from error

    async def write(self, batch: EntryBatch) -> int:
        async with self.pool.acquire(stateless=True) as connection:
            try:
                try:
                    return await _write(connection, batch, _copy)
                except asyncpg.UniqueViolationError:
                    return await _write(connection, batch, _insert_new)
            except FOREIGN as error:
                raise translated(error, "writing a batch") from error

    async def reserve(
        self, key_id: str, hold: str, need_nanousd: int, want_nanousd: int, hold_s: float
    ) -> Grant:
        want = max(need_nanousd, want_nanousd)
        arguments = (key_id, hold, need_nanousd, want, hold_s)
        rows = await self.pool.fetch(_RESERVE, *arguments)
        if rows and rows[0][1] and need_nanousd > 0:
            async with self.pool.transaction() as connection:
                await connection.execute(_LOCK_BUDGET, key_id)
                await connection.execute(_END_HOLDS, key_id)
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
        return self.pool.samples(origin_s=origin_s)

    async def aclose(self) -> None:
        await self.pool.close()


Insert = Callable[[asyncpg.Connection, EntryBatch], Awaitable[int]]


async def _write(connection: asyncpg.Connection, batch: EntryBatch, insert: Insert) -> int:
    """Write `batch` in a transaction; how many of its entries were new. Foreign errors pass through, rolled back."""
    try:
        await connection.execute("BEGIN")
        costs = ((entry.key_id, entry.cost_nanousd) for entry in batch.entries)
        booking = _booking(batch, costs)
        if batch.sequence == UNCOUNTED:
            await connection.fetch(_PREPARE, booking)
        elif not await connection.fetch(_CLAIM, batch.writer, batch.sequence, booking):
            await connection.execute("ROLLBACK")
            return 0
        new = await insert(connection, batch) if batch.entries else 0
        last = [_LOCK_BUDGETS, _BOOK] if batch.entries or batch.releases else []
        if batch.renewals:
            last.append(_RENEW)
        await connection.execute(";".join((*last, "COMMIT")))
    except BaseException:
        with contextlib.suppress(*FOREIGN):  # a connection that is lost has rolled back
            await connection.execute("ROLLBACK")
        raise
    return new


def _booking(batch: EntryBatch, costs: Iterable[tuple[str, int]]) -> str:
    """What the last message of a batch books: sums of `costs` by key, releases and renewals."""
    by_key: dict[str, int] = defaultdict(int)
    for key_id, cost_nanousd in costs:
        by_key[key_id] += cost_nanousd
    booking = {
        "keys": sorted({*by_key, *(key_id for _, key_id, _ in batch.releases)}),
        "costs": by_key,
        "releases": batch.releases,
        "renewals": batch.renewals,
    }
    return msgspec.json.encode(booking).decode()


def _rows(batch: EntryBatch) -> Iterator[tuple[Any, ...]]:
    # In order of id: two writers with the same rows wait for each other's index entries, and must not do so in a circle.
    return map(msgspec.structs.astuple, sorted(batch.entries, key=_ENTRY_ID))


async def _copy(connection: asyncpg.Connection, batch: EntryBatch) -> int:
    """Raises UniqueViolationError when the ledger has one of the rows."""
    await connection.copy_records_to_table(
        "ledger_entries", records=_rows(batch), columns=ENTRY_FIELDS
    )
    return len(batch.entries)


async def _insert_new(connection: asyncpg.Connection, batch: EntryBatch) -> int:
    """Insert the entries that the ledger does not have, and book those alone."""
    inserted = await connection.fetch(_INSERT_NEW, *zip(*_rows(batch), strict=True))
    await connection.execute(_REPLACE_BOOKING, _booking(batch, inserted))
    return len(inserted)
