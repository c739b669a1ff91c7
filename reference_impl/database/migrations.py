"""The schema's versions, and how a database comes to the newest: each step whole or not at all, once, in order.

A step is a file `schema/KIND_NNNN.sql`. The version that a database has is in the database itself. Processes that start
together wait for each other (an advisory lock in PostgreSQL, a write lock in SQLite) and find the work done. A database of a
newer version is left alone.
"""

from __future__ import annotations

from importlib import resources
from typing import Final, Literal

import asyncpg

from reference_impl.database.errors import DatabaseRefused, SchemaTooNew

__all__ = [
    "LOCK_ID",
    "Step",
    "check_current",
    "check_version",
    "migrate_postgres",
    "postgres_version",
    "steps",
]

LOCK_ID: Final = 0x7477696E6C6F6164  # "twinload", as the key of an advisory lock

Step = tuple[int, str]


def steps(kind: Literal["postgres", "sqlite"]) -> list[Step]:
    """(version, SQL) of every step, from version 1 on."""
    folder = resources.files("reference_impl.database") / "schema"
    found = sorted(
        (int(file.name.removesuffix(".sql").rpartition("_")[2]), file.read_text("utf-8"))
        for file in folder.iterdir()
        if file.name.startswith(f"{kind}_") and file.name.endswith(".sql")
    )
    assert [version for version, _ in found] == list(range(1, len(found) + 1))
    return found


def check_version(present: int, known: int) -> None:
    """Raises SchemaTooNew for a schema that a newer program made."""
    if present > known:
        raise SchemaTooNew(
            f"the ledger's schema has version {present}, this program knows {known}: "
            "upgrade the program; the database was not touched"
        )


def check_current(present: int, known: int) -> None:
    """For who reads and must not migrate. Raises SchemaTooNew, and DatabaseRefused for an older schema."""
    check_version(present, known)
    if present < known:
        raise DatabaseRefused(
            f"the ledger's schema has version {present}, this program reads {known}: start a gateway of this version with it, "
            "which migrates it; the database was not touched"
        )


async def postgres_version(connection: asyncpg.Connection) -> int | None:
    """The version of the schema; None where there is none. Foreign errors pass through."""
    if not await connection.fetchval("SELECT to_regclass('ledger_schema') IS NOT NULL"):
        return None
    version: int | None = await connection.fetchval("SELECT max(version) FROM ledger_schema")
    return version


async def migrate_postgres(
    connection: asyncpg.Connection, planned: list[Step] | None = None
) -> list[int]:
    """Apply what is missing in one transaction; the versions applied. Foreign errors pass through."""
    planned = steps("postgres") if planned is None else planned
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_ID)
        present = await postgres_version(connection) or 0
        check_version(present, len(planned))
        if present == len(planned):
            return []
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS ledger_schema "
            "(version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        missing = [step for step in planned if step[0] > present]
        for version, sql in missing:
            await connection.execute(sql)
            await connection.execute("INSERT INTO ledger_schema (version) VALUES ($1)", version)
        return [version for version, _ in missing]
