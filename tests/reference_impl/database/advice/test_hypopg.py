"""The advisor with hypopg, where a system's PostgreSQL has it (Debian: postgresql-15-hypopg)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncpg
import pytest

from reference_impl.database.advice.advise import advise
from reference_impl.database.advice.report import Advice
from reference_impl.database.pool import ConnectionPool
from tests.servers.postgres import PostgresProcess

BINARIES_VARIABLE = "TWINLOAD_TEST_POSTGRES_BIN"


def _binaries() -> Path:
    named = os.environ.get(BINARIES_VARIABLE)
    folders = [Path(named)] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    for folder in folders:
        share = folder.parents[3] / "share" / "postgresql" / folder.parent.name / "extension"
        if (share / "hypopg.control").exists():
            return folder
    reason = "no PostgreSQL with hypopg: install Debian's postgresql-15-hypopg"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def test_hypopg_tries_an_index_without_building_it_and_proposes_none_that_is_not_used() -> None:
    async def main(dsn: str) -> Advice:
        pool = ConnectionPool(dsn, 1, 1)
        await pool.initialize()
        try:
            for number in range(3):
                await pool.fetch("SELECT b FROM t WHERE a = $1", number)
                await pool.fetch("SELECT count(*) FROM t WHERE c = $1", 1)  # half of the rows
                await pool.fetch('SELECT b FROM "order-items" WHERE "a-b" = $1', 1)
                await pool.fetch("SELECT b FROM boxes WHERE at = $1", asyncpg.Box((1, 1), (0, 0)))
            return await advise(pool)
        finally:
            await pool.close()

    with PostgresProcess(binaries=_binaries()) as server:
        server.sql(
            """CREATE EXTENSION pg_stat_statements; CREATE EXTENSION hypopg;
            CREATE TABLE t AS SELECT n AS a, n AS b, n % 2 AS c FROM generate_series(1, 100000) n;
            CREATE TABLE "order-items" AS SELECT a AS "a-b", b FROM t;
            CREATE TABLE boxes AS SELECT box(point(a, a), point(0, 0)) AS at, b FROM t;
            ANALYZE"""
        )
        advice = asyncio.run(main(server.dsn()))
        indexes = server.sql("SELECT count(*) FROM pg_indexes WHERE tablename = 't'")
    assert {(i.table, i.columns, i.source) for i in advice.indexes} == {
        ("t", ("a",), "hypopg"),
        ("order-items", ("a-b",), "hypopg"),
    }
    assert all(index.estimated_gain > 50 for index in advice.indexes)
    assert indexes == "0"
