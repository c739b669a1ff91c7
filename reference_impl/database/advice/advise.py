"""Everything at once: what the dearest statements lack, what should be one statement, which indexes only cost.

Reads `pg_stat_statements` and the planner's own estimates, changes nothing.
"""

from __future__ import annotations

from reference_impl.database.advice.missing_indexes import MissingIndexes
from reference_impl.database.advice.report import Advice
from reference_impl.database.advice.statements import batching, statements
from reference_impl.database.advice.surplus_indexes import surplus_indexes
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.postgres_errors import FOREIGN, translated

__all__ = ["advise"]


async def advise(pool: ConnectionPool, *, measure: bool = False, limit: int = 100) -> Advice:
    """Look at the `limit` statements that took the most time; `measure`: build each proposed index, and roll it back.

    Raises DatabaseRefused where `pg_stat_statements` is not to be had, and other DatabaseErrors.
    """
    async with pool.acquire() as connection:
        try:
            found, hidden = await statements(connection, limit)
            missing = MissingIndexes(connection, measure=measure)
            await missing.prepare()
            for row in found:
                await missing.consider(row["query"], row["calls"])
            surplus = await surplus_indexes(connection)
        except FOREIGN as error:
            raise translated(error, "db advise") from error
    return Advice(
        indexes=tuple(missing.indexes.values()),
        batches=tuple(
            advice
            for row in found
            if (advice := batching(row["query"], row["calls"], row["rows"], row["total_ms"]))
        ),
        surplus=tuple(surplus),
        statements=len(found),
        unplanned=missing.unplanned,
        hidden=hidden,
    )
