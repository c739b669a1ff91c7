"""The advisor over a real PostgreSQL with a table of a million rows."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner

from reference_impl.database.advice.advise import advise
from reference_impl.database.advice.report import Advice
from reference_impl.database.commands import db
from reference_impl.database.errors import DatabaseRefused
from reference_impl.database.pool import ConnectionPool
from tests.servers.postgres import fresh_database, shared_postgres

pytestmark = pytest.mark.xdist_group("advisor")

NEEDS_INDEX = "SELECT id, amount FROM orders WHERE customer = $1 AND placed > $2"
NEEDS_NONE = "SELECT id, amount FROM orders WHERE id = $1"
READS_ALL = "SELECT count(*), sum(amount) FROM orders WHERE amount >= $1"


@pytest.fixture(scope="module")
def million() -> str:
    dsn = fresh_database()
    shared_postgres().sql(
        """CREATE EXTENSION pg_stat_statements;
        CREATE TABLE orders (id bigint PRIMARY KEY, customer text, placed int, amount int);
        INSERT INTO orders SELECT n, 'customer-' || n % 5000, n, n % 1000
            FROM generate_series(1, 1000000) n;
        CREATE INDEX twin_a ON orders (amount); CREATE INDEX twin_b ON orders (amount);
        CREATE INDEX prefix ON orders (placed); CREATE INDEX longer ON orders (placed, id);
        CREATE TABLE notes (id int, body text);
        ANALYZE""",
        dsn.rpartition("/")[2],
    )
    return dsn


async def _ask(dsn: str, measure: bool) -> Advice:
    pool = ConnectionPool(dsn, 1, 2, statement_timeout_s=60)
    await pool.initialize()
    try:
        await pool.execute("SELECT pg_stat_statements_reset()")
        async with pool.acquire() as connection:
            for number in range(3):
                await connection.fetch(NEEDS_INDEX, f"customer-{number}", 900_000)
            await connection.fetch(READS_ALL, 0)
            for number in range(1200):
                await connection.fetch(NEEDS_NONE, number)
                await connection.execute("INSERT INTO notes VALUES ($1, $2)", number, "x")
        return await advise(pool, measure=measure, pool_size=2, rate_per_s=200, hold_s=0.03)
    finally:
        await pool.close()


def test_it_proposes_the_missing_index_with_its_measured_gain_and_nothing_for_a_query_that_needs_none(
    million: str,
) -> None:
    advice = asyncio.run(_ask(million, True))
    assert [(index.table, index.columns) for index in advice.indexes] == [
        ("orders", ("customer", "placed"))
    ]
    (index,) = advice.indexes
    assert index.sql == (
        'CREATE INDEX CONCURRENTLY IF NOT EXISTS "ix_orders_customer_placed" '
        'ON "public"."orders" ("customer", "placed");'
    )
    assert index.estimated_gain > 2
    assert index.measured_gain is not None
    assert index.measured_gain > 5, index
    left = shared_postgres().sql(
        "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'ix_%'", million.rpartition("/")[2]
    )
    assert left == "0", "measuring leaves nothing behind"


def test_it_finds_statements_to_batch_surplus_indexes_and_a_pool_too_small(million: str) -> None:
    advice = asyncio.run(_ask(million, False))
    found = {statement.query: statement.advice for statement in advice.batches}
    assert set(found) == {NEEDS_NONE, "INSERT INTO notes VALUES ($1, $2)"}
    surplus = {index.index: index.other for index in advice.surplus}
    assert surplus["public.twin_b"] == "public.twin_a"
    assert surplus["public.prefix"] == "public.longer"
    assert "public.orders_pkey" not in surplus
    assert advice.pool is not None
    assert advice.pool.verdict == "too small"


def test_the_command_prints_json_and_words(million: str) -> None:
    options = ["advise", "--database", million]
    as_json = CliRunner().invoke(db, [*options, "--json"])
    assert as_json.exit_code == 0, as_json.output
    assert {"indexes", "batches", "surplus", "pool"} <= set(json.loads(as_json.output))
    words = CliRunner().invoke(
        db, [*options, "--pool-size", "2", "--rate", "200", "--hold", "0.03"]
    )
    assert "pool of 2: too small" in words.output
    half = CliRunner().invoke(db, [*options, "--rate", "2"])
    assert (half.exit_code, "belong together" in half.output) == (2, True)


def test_without_the_statistics_it_says_how_to_get_them() -> None:
    async def main() -> None:
        pool = ConnectionPool(fresh_database(), 1, 2)
        await pool.initialize()
        try:
            with pytest.raises(DatabaseRefused, match="CREATE EXTENSION pg_stat_statements"):
                await advise(pool)
        finally:
            await pool.close()

    asyncio.run(main())
