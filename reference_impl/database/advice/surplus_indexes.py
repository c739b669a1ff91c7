"""Indexes that cost and do not serve."""

from __future__ import annotations

from typing import Final

import asyncpg

from reference_impl.database.advice.report import SurplusIndex

__all__ = ["surplus_indexes"]

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


async def surplus_indexes(connection: asyncpg.Connection) -> list[SurplusIndex]:
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
