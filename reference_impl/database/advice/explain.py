"""EXPLAIN for statements as `pg_stat_statements` keeps them: with parameters in place of their values."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any, Final

import asyncpg

__all__ = ["Explainer"]

MEASURED_RUNS: Final = 3


class Explainer:
    """Plans statements on one connection; leaves nothing prepared."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def plan(self, query: str) -> dict[str, Any] | None:
        """The generic plan of a statement whose values are not known; None where it cannot be had."""
        connection = self._connection
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            return await self.explained(query)
        except (
            asyncpg.PostgresError
        ):  # a statement of another schema, or one that cannot be prepared
            return None
        finally:
            await transaction.rollback()

    async def explained(
        self, query: str, values: Sequence[str] | None = None, *, analyze: bool = False
    ) -> dict[str, Any]:
        """The plan with `values`, literals for its parameters; with `analyze` the statement is executed."""
        connection = self._connection
        await connection.execute(f"PREPARE twinload_advised AS {query}")
        try:
            # What is prepared outlives a rollback, and cannot be given up in a transaction that has failed: hence one within.
            async with connection.transaction():
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
                await connection.execute("DEALLOCATE twinload_advised")
        explained: dict[str, Any] = json.loads(text)[0]
        return {**explained["Plan"], "Execution Time": explained.get("Execution Time")}

    async def time_ms(self, query: str, values: Sequence[str]) -> float:
        """The median time of a few executions."""
        runs = [
            (await self.explained(query, values, analyze=True))["Execution Time"]
            for _ in range(MEASURED_RUNS)
        ]
        return float(statistics.median(runs))
