"""What a PostgreSQL database would be better with: indexes, batches, fewer indexes, another pool.

Reads `pg_stat_statements` and the planner's own estimates, changes nothing. With hypopg an index is tried without being built;
without it its worth is estimated from the planner's constants. Asked to measure, it builds the index in a transaction, runs
the statement before and after with values of a row that exists, and rolls back: the table is locked against writes meanwhile.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any, Final, Literal

import asyncpg
import msgspec

from reference_impl.database.errors import DatabaseRefused
from reference_impl.database.optimizer import QueryOptimizer, index_name, quoted
from reference_impl.database.plans import (
    SELECTIVE,
    Candidate,
    candidates,
    cost_of,
    parameter_columns,
    uses_index,
)
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.pool_sizing import PoolVerdict, judge_pool
from reference_impl.database.postgres_errors import FOREIGN, translated

__all__ = ["Advice", "IndexAdvice", "StatementAdvice", "SurplusIndex", "advise"]

MIN_GAIN: Final = 2.0  # an index that does not halve a statement's cost is not worth its upkeep
MANY_CALLS: Final = 1000
MEASURED_RUNS: Final = 3

Source = Literal["hypopg", "formula"]


class IndexAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """An index to add. Gains are ratios before/after: of the planner's costs, and of measured times (NaN-free: None = not measured)."""

    sql: str
    table: str
    columns: tuple[str, ...]
    query: str
    calls: int
    estimated_gain: float
    source: Source
    measured_gain: float | None = None
    before_ms: float | None = None
    after_ms: float | None = None
    note: str = ""


class StatementAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """A statement that is sent again and again for one row: N+1 reads, or single inserts."""

    query: str
    calls: int
    total_ms: float
    advice: str


class SurplusIndex(msgspec.Struct, frozen=True, kw_only=True):
    """An index that costs and does not serve: never read, or contained in `other`."""

    index: str
    table: str
    size_bytes: int
    reason: str
    other: str = ""


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found; `statements` were looked at, `unplanned` could not be planned without their values."""

    indexes: tuple[IndexAdvice, ...] = ()
    batches: tuple[StatementAdvice, ...] = ()
    surplus: tuple[SurplusIndex, ...] = ()
    pool: PoolVerdict | None = None
    statements: int = 0
    unplanned: int = 0


_STATEMENTS: Final = """
    SELECT query, sum(calls)::bigint AS calls, sum(total_exec_time) AS total_ms, sum(rows)::bigint AS rows
    FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
    WHERE d.datname = current_database() AND calls > 0
    GROUP BY query ORDER BY total_ms DESC LIMIT $1"""
_COLUMNS: Final = """
    SELECT c.relname, array_agg(a.attname::text) AS columns FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
        AND n.nspname NOT IN ('pg_catalog', 'information_schema') GROUP BY c.relname"""
_INDEXES: Final = """
    SELECT i.indexrelid::regclass::text AS index, i.indrelid::regclass::text AS table,
        i.indkey::text AS keys, coalesce(pg_get_expr(i.indpred, i.indrelid), '')
            || coalesce(pg_get_expr(i.indexprs, i.indrelid), '') || i.indclass::text AS rest,
        coalesce(pg_get_expr(i.indpred, i.indrelid), '')
            || coalesce(pg_get_expr(i.indexprs, i.indrelid), '') AS special,
        i.indisunique AS is_unique, c.relam, pg_relation_size(i.indexrelid) AS size, s.idx_scan
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_stat_user_indexes s ON s.indexrelid = i.indexrelid
    WHERE i.indisvalid ORDER BY 1"""


async def advise(
    pool: ConnectionPool,
    *,
    measure: bool = False,
    limit: int = 100,
    pool_size: int | None = None,
    rate_per_s: float | None = None,
    hold_s: float | None = None,
) -> Advice:
    """Look at the `limit` statements that took the most time.

    `pool_size` with `rate_per_s` and `hold_s`: judge a pool by its measured demand. Raises DatabaseRefused where
    `pg_stat_statements` is not to be had, and other DatabaseErrors.
    """
    async with pool.acquire() as connection:
        try:
            found = await _statements(connection, limit)
            advisor = _Advisor(connection, await _column_names(connection), measure)
            await advisor.prepare()
            for row in found:
                await advisor.consider(row["query"], row["calls"])
            surplus = await _surplus(connection)
        except FOREIGN as error:
            raise translated(error, "db advise") from error
    verdict = None
    if pool_size is not None and rate_per_s is not None and hold_s is not None:
        verdict = judge_pool(pool_size, rate_per_s, hold_s)
    return Advice(
        indexes=tuple(advisor.indexes.values()),
        batches=tuple(
            advice
            for row in found
            if (advice := _batching(row["query"], row["calls"], row["rows"], row["total_ms"]))
        ),
        surplus=tuple(surplus),
        pool=verdict,
        statements=len(found),
        unplanned=advisor.unplanned,
    )


async def _statements(connection: asyncpg.Connection, limit: int) -> list[asyncpg.Record]:
    try:
        rows: list[asyncpg.Record] = await connection.fetch(_STATEMENTS, limit)
    except (asyncpg.UndefinedTableError, asyncpg.ObjectNotInPrerequisiteStateError) as error:
        raise DatabaseRefused(
            "db advise needs pg_stat_statements: set shared_preload_libraries = 'pg_stat_statements', "
            "restart, and CREATE EXTENSION pg_stat_statements"
        ) from error
    return rows


async def _column_names(connection: asyncpg.Connection) -> dict[str, set[str]]:
    return {row["relname"]: set(row["columns"]) for row in await connection.fetch(_COLUMNS)}


class _Advisor:
    """Considers statement after statement on one connection; an index is proposed once, for its dearest statement."""

    def __init__(
        self, connection: asyncpg.Connection, columns: dict[str, set[str]], measure: bool
    ) -> None:
        self._connection = connection
        self._columns = columns
        self._measure = measure
        self._hypopg = False
        self._random_page_cost = 4.0
        self.indexes: dict[tuple[str, tuple[str, ...]], IndexAdvice] = {}
        self.unplanned = 0

    async def prepare(self) -> None:
        self._hypopg = await self._connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'hypopg')"
        )
        self._random_page_cost = float(
            await self._connection.fetchval("SELECT current_setting('random_page_cost')")
        )

    async def consider(self, query: str, calls: int) -> None:
        verb = query.lstrip("( \n\t").partition(" ")[0].upper()
        if verb not in ("SELECT", "UPDATE", "DELETE", "WITH"):
            return
        plan = await self._plan(query)
        if plan is None:
            self.unplanned += 1
            return
        for candidate in candidates(plan, self._columns):
            key = (candidate.table, candidate.columns)
            if key in self.indexes or await self._too_many_rows(candidate):
                continue
            gain = await self._gain(query, plan, candidate)
            if gain < MIN_GAIN:
                continue
            advice = IndexAdvice(
                sql=QueryOptimizer.add_indexes(
                    [",".join(candidate.columns)],
                    table=f"{candidate.schema}.{candidate.table}",
                    concurrently=True,
                ),
                table=candidate.table,
                columns=candidate.columns,
                query=" ".join(query.split()),
                calls=calls,
                estimated_gain=gain,
                source="hypopg" if self._hypopg else "formula",
            )
            self.indexes[key] = (
                await self._measured(advice, query, plan, candidate) if self._measure else advice
            )

    async def _plan(self, query: str) -> dict[str, Any] | None:
        """The generic plan of a statement whose values are not known; None where it cannot be had."""
        connection = self._connection
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            return await self._explained(query)
        except (
            asyncpg.PostgresError
        ):  # a statement of another schema, or one that cannot be prepared
            return None
        finally:
            await transaction.rollback()

    async def _explained(
        self, query: str, values: Sequence[str] | None = None, *, analyze: bool = False
    ) -> dict[str, Any]:
        connection = self._connection
        await connection.execute(f"PREPARE twinload_advised AS {query}")
        try:
            count = await connection.fetchval(
                "SELECT cardinality(parameter_types) FROM pg_prepared_statements "
                "WHERE name = 'twinload_advised'"
            )
            given = ", ".join(["NULL"] * count if values is None else values)
            how = "ANALYZE, VERBOSE" if analyze else "VERBOSE"
            text = await connection.fetchval(
                f"EXPLAIN ({how}, FORMAT JSON) EXECUTE twinload_advised"
                + (f"({given})" if count else "")
            )
        finally:
            if not connection.is_closed():
                # A failed statement has undone the PREPARE with its transaction.
                await _quietly(connection, "DEALLOCATE twinload_advised")
        explained: dict[str, Any] = json.loads(text)[0]
        return {**explained["Plan"], "Execution Time": explained.get("Execution Time")}

    async def _too_many_rows(self, candidate: Candidate) -> bool:
        rows = await self._connection.fetchval(
            "SELECT reltuples FROM pg_class WHERE oid = to_regclass($1)",
            f"{quoted(candidate.schema)}.{quoted(candidate.table)}",
        )
        return rows is None or candidate.rows > SELECTIVE * max(rows, 1.0)

    async def _gain(self, query: str, plan: dict[str, Any], candidate: Candidate) -> float:
        before = cost_of(plan)
        if not self._hypopg:
            # One random page for the index's leaf and one for each row: what an index scan costs at the worst.
            after = (2 + candidate.rows) * self._random_page_cost
            return before / max(after, 1e-9)
        ddl = QueryOptimizer.add_indexes(
            [",".join(candidate.columns)], table=f"{candidate.schema}.{candidate.table}"
        ).replace(" IF NOT EXISTS", "")
        name = await self._connection.fetchval("SELECT indexname FROM hypopg_create_index($1)", ddl)
        try:
            with_index = await self._plan(query)
        finally:
            await self._connection.execute("SELECT hypopg_reset()")
        if with_index is None or not uses_index(with_index, name):
            return 1.0
        return before / max(cost_of(with_index), 1e-9)

    async def _measured(
        self, advice: IndexAdvice, query: str, plan: dict[str, Any], candidate: Candidate
    ) -> IndexAdvice:
        connection = self._connection
        if query.lstrip("( \n\t")[:6].upper() != "SELECT":
            return msgspec.structs.replace(advice, note="not measured: it writes")
        values = await self._values(plan, query)
        if values is None:
            return msgspec.structs.replace(
                advice, note="not measured: the values of its parameters are not known"
            )
        ddl = QueryOptimizer.add_indexes(
            [",".join(candidate.columns)], table=f"{candidate.schema}.{candidate.table}"
        )
        transaction = connection.transaction()
        await transaction.start()
        try:
            before_ms = await self._time_ms(query, values)
            await connection.execute(ddl)
            after_ms = await self._time_ms(query, values)
            after = await self._explained(query, values)
        finally:
            await transaction.rollback()
        used = uses_index(after, index_name(candidate.table, candidate.columns))
        return msgspec.structs.replace(
            advice,
            measured_gain=before_ms / max(after_ms, 1e-6),
            before_ms=before_ms,
            after_ms=after_ms,
            note="" if used else "the planner does not use it for these values",
        )

    async def _time_ms(self, query: str, values: Sequence[str]) -> float:
        runs = [
            (await self._explained(query, values, analyze=True))["Execution Time"]
            for _ in range(MEASURED_RUNS)
        ]
        return float(statistics.median(runs))

    async def _values(self, plan: dict[str, Any], query: str) -> list[str] | None:
        """A literal for each parameter, from one row of the table that it is compared with."""
        wanted = parameter_columns(plan)
        count = max((int(n) for n in _parameters(query)), default=0)
        literals = []
        for number in range(1, count + 1):
            if number not in wanted:
                return None
            table, column = wanted[number]
            # The middle of what a sample of the table holds: neither the rarest value nor the most frequent one.
            literals.append(
                await self._connection.fetchval(
                    f"SELECT quote_nullable(v::text) FROM (SELECT {quoted(column)} AS v FROM {quoted(table)} "  # noqa: S608 - quoted
                    "LIMIT 1001) s ORDER BY v OFFSET 500 * (SELECT count(*) / 1001 FROM "
                    f"(SELECT FROM {quoted(table)} LIMIT 1001) c) LIMIT 1"
                )
            )
        return literals if all(literals) else None


def _parameters(query: str) -> list[str]:
    return [part for chunk in query.split("$")[1:] if (part := _digits(chunk))]


def _digits(text: str) -> str:
    end = 0
    while end < len(text) and text[end].isdigit():
        end += 1
    return text[:end]


async def _quietly(connection: asyncpg.Connection, statement: str) -> None:
    try:
        await connection.execute(statement)
    except asyncpg.PostgresError:  # the transaction is broken already; its rollback cleans up
        return


def _batching(query: str, calls: int, rows: int, total_ms: float) -> StatementAdvice | None:
    """Whether a statement is one of many alike that could be one."""
    text = " ".join(query.split())
    upper = text.upper()
    if calls < MANY_CALLS or rows > calls or " PG_" in upper:
        return None
    if upper.startswith("INSERT") and "VALUES" in upper and "UNNEST" not in upper:
        advice = "insert many rows at once: COPY, or INSERT ... SELECT FROM unnest(...)"
    elif (
        upper.startswith("SELECT") and " WHERE " in upper and " = $" in text and "ANY" not in upper
    ):
        advice = "read many rows at once: WHERE column = ANY($1)"
    else:
        return None
    return StatementAdvice(query=text, calls=calls, total_ms=total_ms, advice=advice)


async def _surplus(connection: asyncpg.Connection) -> list[SurplusIndex]:
    rows = await connection.fetch(_INDEXES)
    found = []
    for row in rows:
        other = next((o["index"] for o in rows if _contained(row, o)), "")
        reason = ""
        if other:
            reason = "another index begins with the same columns"
        elif row["idx_scan"] == 0 and not row["is_unique"]:
            reason = "never read since the statistics were reset"
        if reason:
            found.append(
                SurplusIndex(
                    index=row["index"],
                    table=row["table"],
                    size_bytes=row["size"],
                    reason=reason,
                    other=other,
                )
            )
    return found


def _contained(row: asyncpg.Record, other: asyncpg.Record) -> bool:
    """Whether `other` serves all that `row` serves."""
    if row["index"] == other["index"] or row["is_unique"]:
        return False
    same = ("table", "relam", "special")
    if any(row[part] != other[part] for part in same):
        return False
    if row["keys"] == other["keys"]:
        # Of twins one is named: the one that is not unique, or the later of the two.
        return bool(row["rest"] == other["rest"]) and bool(
            other["is_unique"] or other["index"] < row["index"]
        )
    return bool(other["keys"].startswith(row["keys"] + " "))
