"""The statements that took the most time, and those of them that should be one."""

from __future__ import annotations

from typing import Final

import asyncpg

from reference_impl.database.advice.report import StatementAdvice
from reference_impl.database.errors import DatabaseRefused

__all__ = ["batching", "statements"]

MANY_CALLS: Final = 1000

# What the server shows of a statement in place of its text, to those who may not read it.
_HIDDEN: Final = "<insufficient privilege>"
_SCHEMA: Final = """
    SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
    WHERE e.extname = 'pg_stat_statements'"""
_OF_THIS_DATABASE: Final = "d.oid = s.dbid AND d.datname = current_database() AND calls > 0"


async def statements(
    connection: asyncpg.Connection, limit: int
) -> tuple[list[asyncpg.Record], int]:
    """The `limit` statements that took the most time, and how many are hidden from this user.

    Raises DatabaseRefused where `pg_stat_statements` is not to be had; other errors of the driver pass through.
    """
    schema = await connection.fetchval(_SCHEMA)  # which need not be on the search path
    try:
        if schema is None:
            raise asyncpg.UndefinedTableError
        rows = await connection.fetch(
            "SELECT query, sum(calls)::bigint AS calls, sum(total_exec_time) AS total_ms, "  # noqa: S608 - quoted
            f"sum(rows)::bigint AS rows FROM {schema}.pg_stat_statements s "
            f"JOIN pg_database d ON {_OF_THIS_DATABASE} WHERE query <> $2 "
            "GROUP BY query ORDER BY total_ms DESC LIMIT $1",
            limit,
            _HIDDEN,
        )
        hidden = await connection.fetchval(
            f"SELECT count(*) FROM {schema}.pg_stat_statements s "  # noqa: S608 - quoted
            f"JOIN pg_database d ON {_OF_THIS_DATABASE} WHERE query = $1",
            _HIDDEN,
        )
    except (asyncpg.UndefinedTableError, asyncpg.ObjectNotInPrerequisiteStateError) as error:
        raise DatabaseRefused(
            "db advise needs pg_stat_statements: set shared_preload_libraries = 'pg_stat_statements', "
            "restart, and CREATE EXTENSION pg_stat_statements"
        ) from error
    return rows, hidden


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
