"""The statements that took the most time, and those of them that should be one."""

from __future__ import annotations

from typing import Final

import asyncpg

from reference_impl.database.advice.report import StatementAdvice
from reference_impl.database.errors import DatabaseRefused

__all__ = ["batching", "statements"]

MANY_CALLS: Final = 1000

_STATEMENTS: Final = """
    SELECT query, sum(calls)::bigint AS calls, sum(total_exec_time) AS total_ms, sum(rows)::bigint AS rows
    FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
    WHERE d.datname = current_database() AND calls > 0
    GROUP BY query ORDER BY total_ms DESC LIMIT $1"""


async def statements(connection: asyncpg.Connection, limit: int) -> list[asyncpg.Record]:
    try:
        rows: list[asyncpg.Record] = await connection.fetch(_STATEMENTS, limit)
    except (asyncpg.UndefinedTableError, asyncpg.ObjectNotInPrerequisiteStateError) as error:
        raise DatabaseRefused(
            "db advise needs pg_stat_statements: set shared_preload_libraries = 'pg_stat_statements', "
            "restart, and CREATE EXTENSION pg_stat_statements"
        ) from error
    return rows


def batching(query: str, calls: int, rows: int, total_ms: float) -> StatementAdvice | None:
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
