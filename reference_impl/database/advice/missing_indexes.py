"""Indexes that the dearest statements lack.

With hypopg an index is tried without being built; without it its worth is estimated from the planner's constants. Asked to
measure, it builds the index in a transaction, runs the statement before and after with values of a row that exists, and rolls
back: the table is locked against writes meanwhile.
"""

from __future__ import annotations

from typing import Any, Final

import asyncpg
import msgspec

from reference_impl.database.advice.explain import Explainer
from reference_impl.database.advice.plans import (
    SELECTIVE,
    Candidate,
    candidates,
    cost_of,
    parameter_columns,
    uses_index,
)
from reference_impl.database.advice.report import IndexAdvice
from reference_impl.database.errors import summary
from reference_impl.database.optimizer import create_index, index_name, quoted_name

__all__ = ["MissingIndexes"]

MIN_GAIN: Final = 2.0  # an index that does not halve a statement's cost is not worth its upkeep

_COLUMNS: Final = """
    SELECT n.nspname, c.relname, array_agg(a.attname::text) AS columns FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
        AND n.nspname NOT IN ('pg_catalog', 'information_schema') GROUP BY n.nspname, c.relname"""


class MissingIndexes:
    """Considers statement after statement on one connection; an index is proposed once, for its dearest statement."""

    def __init__(self, connection: asyncpg.Connection, *, measure: bool) -> None:
        self._connection = connection
        self._explainer = Explainer(connection)
        self._columns: dict[tuple[str, str], set[str]] = {}
        self._measure = measure
        self._hypopg = False
        self._random_page_cost = 4.0
        self.indexes: dict[tuple[str, str, tuple[str, ...]], IndexAdvice] = {}
        self.unplanned = 0

    async def prepare(self) -> None:
        """Read what is the same for every statement. Errors of the driver pass through, here and in `consider`."""
        self._columns = {
            (row["nspname"], row["relname"]): set(row["columns"])
            for row in await self._connection.fetch(_COLUMNS)
        }
        self._hypopg = await self._connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'hypopg')"
        )
        self._random_page_cost = float(
            await self._connection.fetchval("SELECT current_setting('random_page_cost')")
        )

    async def consider(self, query: str, calls: int) -> None:
        """Add to `indexes` what `query` lacks, or to `unplanned`."""
        verb = query.lstrip("( \n\t").partition(" ")[0].upper()
        if verb not in ("SELECT", "UPDATE", "DELETE", "WITH"):
            return
        plan = await self._explainer.plan(query)
        if plan is None:
            self.unplanned += 1
            return
        for candidate in candidates(plan, self._columns):
            key = (candidate.schema, candidate.table, candidate.columns)
            if key in self.indexes or await self._too_many_rows(candidate):
                continue
            gain = await self._gain(query, plan, candidate)
            if gain < MIN_GAIN:
                continue
            advice = IndexAdvice(
                sql=create_index(candidate.relation, candidate.columns, concurrently=True),
                schema=candidate.schema,
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

    async def _too_many_rows(self, candidate: Candidate) -> bool:
        rows = await self._connection.fetchval(
            "SELECT reltuples FROM pg_class WHERE oid = to_regclass($1)",
            _relation(candidate.relation),
        )
        return rows is None or candidate.rows > SELECTIVE * max(rows, 1.0)

    async def _gain(self, query: str, plan: dict[str, Any], candidate: Candidate) -> float:
        before = cost_of(plan)
        if not self._hypopg:
            # One random page for the index's leaf and one for each row: what an index scan costs at the worst.
            after = (2 + candidate.rows) * self._random_page_cost
            return before / max(after, 1e-9)
        ddl = create_index(candidate.relation, candidate.columns, if_not_exists=False)
        try:
            name = await self._connection.fetchval(
                "SELECT indexname FROM hypopg_create_index($1)", ddl
            )
        except asyncpg.PostgresError:  # a type that no B-tree takes
            return 1.0
        try:
            with_index = await self._explainer.plan(query)
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
        ddl = create_index(candidate.relation, candidate.columns)
        transaction = connection.transaction()
        await transaction.start()
        try:
            values = await self._values(plan, query)
            if values is None:
                return msgspec.structs.replace(
                    advice, note="not measured: the values of its parameters are not known"
                )
            before_ms = await self._explainer.time_ms(query, values)
            await connection.execute(ddl)
            after_ms = await self._explainer.time_ms(query, values)
            after = await self._explainer.explained(query, values)
        except (asyncpg.PostgresError, TimeoutError) as error:
            # Somebody else's table, a lock that is not had, too long a statement: the proposal stands, and so do the others.
            return msgspec.structs.replace(advice, note=f"not measured: {summary(error)}")
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

    async def _values(self, plan: dict[str, Any], query: str) -> list[str] | None:
        """A literal for each parameter, from one row of the table that it is compared with."""
        wanted = parameter_columns(plan)
        count = max((int(n) for n in _parameters(query)), default=0)
        literals = []
        for number in range(1, count + 1):
            if number not in wanted:
                return None
            relation, column = wanted[number]
            table = _relation(relation)
            # The middle of what a sample of the table holds: neither the rarest value nor the most frequent one.
            literals.append(
                await self._connection.fetchval(
                    f"SELECT quote_nullable(v::text) FROM (SELECT {quoted_name(column)} AS v FROM {table} "  # noqa: S608 - quoted
                    "LIMIT 1001) s ORDER BY v OFFSET 500 * (SELECT count(*) / 1001 FROM "
                    f"(SELECT FROM {table} LIMIT 1001) c) LIMIT 1"
                )
            )
        return literals if all(literals) else None


def _relation(names: tuple[str, str]) -> str:
    return ".".join(map(quoted_name, names))


def _parameters(query: str) -> list[str]:
    return [part for chunk in query.split("$")[1:] if (part := _digits(chunk))]


def _digits(text: str) -> str:
    end = 0
    while end < len(text) and text[end].isdigit():
        end += 1
    return text[:end]
