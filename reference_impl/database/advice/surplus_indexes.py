"""Indexes that cost and do not serve: contained in another, or never read.

A person may drop all that is named here at once, so what is kept must serve in place of all of it: an index that another is
dropped for is not itself named. What a constraint needs is not named either, nor what PostgreSQL would not drop alone.
"""

from __future__ import annotations

from typing import Final

import asyncpg
import msgspec

from reference_impl.database.advice.report import SurplusIndex

__all__ = ["Index", "find_surplus", "surplus_indexes"]

# One column of an index a row of the inner query: INCLUDE columns, beyond indnkeyatts, have no operator class, order or
# collation. Texts of columns are as in CREATE INDEX: a name, quoted where it must be, or an expression.
_INDEXES: Final = """
    SELECT format('%I.%I', n.nspname, c.relname) AS name, i.indrelid AS table_oid,
        format('%I.%I', tn.nspname, t.relname) AS table, am.amname AS method,
        coalesce(pg_get_expr(i.indpred, i.indrelid), '') AS predicate,
        coalesce(c.reloptions::text, '') AS storage,
        ARRAY(
            SELECT concat_ws(' ', pg_get_indexdef(i.indexrelid, k, false),
                i.indclass[k - 1], i.indcollation[k - 1], i.indoption[k - 1], a.attoptions::text)
            FROM generate_series(1, i.indnkeyatts) AS k
            JOIN pg_attribute a ON a.attrelid = i.indexrelid AND a.attnum = k ORDER BY k
        ) AS keys,
        ARRAY(
            SELECT pg_get_indexdef(i.indexrelid, k, false)
            FROM generate_series(1, i.indnatts) AS k ORDER BY k
        ) AS columns,
        i.indnkeyatts AS key_count,
        i.indisunique OR i.indisexclusion OR i.indisreplident OR c.relispartition
            OR EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = i.indexrelid) AS is_needed,
        coalesce(pg_relation_size(i.indexrelid), 0) AS size_bytes, s.idx_scan AS scans
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace
    JOIN pg_am am ON am.oid = c.relam
    JOIN pg_stat_user_indexes s ON s.indexrelid = i.indexrelid
    WHERE i.indisvalid AND i.indisready AND i.indislive ORDER BY 1"""


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """An index as the catalogue has it.

    `keys`: its key columns, each with operator class, collation, order and options, which decide what it can be read for;
    `included`: further columns that it returns, by name; `returned`: all that it returns, `included` too. `is_needed`: it
    is unique, or a constraint, a replica's identity or a partitioned index stands on it.
    """

    name: str
    table_oid: int
    table: str
    method: str
    predicate: str
    storage: str
    keys: tuple[str, ...]
    included: frozenset[str]
    returned: frozenset[str]
    is_needed: bool
    size_bytes: int
    scans: int


async def surplus_indexes(connection: asyncpg.Connection) -> list[SurplusIndex]:
    """What could be dropped of the indexes of a database. Errors of the driver pass through."""
    return find_surplus([_index(row) for row in await connection.fetch(_INDEXES)])


def find_surplus(indexes: list[Index]) -> list[SurplusIndex]:
    """What could be dropped of `indexes`, all of it at once."""
    containers = {
        index.name: [other for other in indexes if _replaces(other, index)]
        for index in indexes
        if not index.is_needed
    }
    found, kept = [], set()
    for index in indexes:
        # What contains an index's container contains the index too, so one that stays is always among them.
        staying = [
            other for other in containers.get(index.name, ()) if not containers.get(other.name)
        ]
        if staying:
            kept.add(staying[0].name)
            found.append(
                _surplus(index, "another index begins with the same columns", staying[0].name)
            )
    for index in indexes:
        unread = index.scans == 0 and not index.is_needed
        if unread and not containers[index.name] and index.name not in kept:
            found.append(_surplus(index, "never read since the statistics were reset"))
    return sorted(found, key=lambda surplus: surplus.index)


def _replaces(other: Index, index: Index) -> bool:
    """Whether `index` may go because `other` is there; of two that could replace each other, one."""
    if other.name == index.name or not _serves(other, index):
        return False
    return not _serves(index, other) or other.is_needed or other.name < index.name


def _serves(other: Index, index: Index) -> bool:
    """Whether `other` can be read for all that `index` can be read for."""
    if (other.table_oid, other.method, other.predicate) != (
        index.table_oid,
        index.method,
        index.predicate,
    ):
        return False
    if index.method != "btree":
        # A prefix is as good as the whole in B-trees alone, and elsewhere storage parameters decide what is found and how.
        return (other.keys, other.included, other.storage) == (
            index.keys,
            index.included,
            index.storage,
        )
    return other.keys[: len(index.keys)] == index.keys and index.included <= other.returned


def _surplus(index: Index, reason: str, other: str = "") -> SurplusIndex:
    return SurplusIndex(
        index=index.name,
        table=index.table,
        size_bytes=index.size_bytes,
        reason=reason,
        other=other,
    )


def _index(row: asyncpg.Record) -> Index:
    columns, count = row["columns"], row["key_count"]
    return Index(
        name=row["name"],
        table_oid=row["table_oid"],
        table=row["table"],
        method=row["method"],
        predicate=row["predicate"],
        storage=row["storage"],
        keys=tuple(row["keys"]),
        included=frozenset(columns[count:]),
        returned=frozenset(columns),
        is_needed=row["is_needed"],
        size_bytes=row["size_bytes"],
        scans=row["scans"],
    )
