"""The advisor over a real PostgreSQL with a table of a million rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from reference_impl.database.advice.advise import advise
from reference_impl.database.advice.report import Advice
from reference_impl.database.commands import db
from reference_impl.database.errors import DatabaseRefused
from reference_impl.database.pool import ConnectionPool
from tests.command_line import run_twinload
from tests.servers.postgres import PASSWORD, fresh_database, shared_postgres

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
        return await advise(pool, measure=measure)
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


def test_it_finds_statements_to_batch_and_surplus_indexes(million: str) -> None:
    advice = asyncio.run(_ask(million, False))
    found = {statement.query: statement.advice for statement in advice.batches}
    assert set(found) == {NEEDS_NONE, "INSERT INTO notes VALUES ($1, $2)"}
    surplus = {index.index: index.other for index in advice.surplus}
    assert surplus["public.twin_b"] == "public.twin_a"
    assert surplus["public.prefix"] == "public.longer"
    assert "public.orders_pkey" not in surplus


def test_the_command_prints_json_and_words(million: str) -> None:
    options = ["advise", "--database", million]
    as_json = CliRunner().invoke(db, [*options, "--json"])
    assert as_json.exit_code == 0, as_json.output
    assert {"indexes", "batches", "surplus", "pool"} <= set(json.loads(as_json.output))
    words = CliRunner().invoke(
        db, [*options, "--pool-size", "2", "--rate", "200", "--hold", "0.03"]
    )
    assert "pool of 2: too small" in words.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--rate", "2"), "belong together"),
        (("--pool-size", "-1", "--rate", "1", "--hold", "1"), "-1 is not in the range"),
        (("--pool-size", "2", "--rate", "nan", "--hold", "1"), "rate_per_s nan"),
        (("--pool-size", "2", "--rate", "1", "--hold", "inf"), "hold_s inf"),
        (("--pool-size", "2", "--rate", "1e9", "--hold", "1"), "at most 262143 connections"),
        (("--limit", "0"), "0 is not in the range"),
        (("--database", "ledger.sqlite"), "must be postgresql://"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_database_is_asked(
    options: tuple[str, ...], says: str
) -> None:
    printed = run_twinload("db", "advise", "--database", "postgresql://u:p@127.0.0.1:1/d", *options)
    assert (printed.status, printed.out) == (2, "")
    assert says in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        (lambda: "postgresql://u:secret@127.0.0.1:1/d", "Connect call failed"),
        (lambda: fresh_database().replace(PASSWORD, "secret"), "password authentication failed"),
        (lambda: f"{fresh_database()}_not", "does not exist"),
        (fresh_database, "CREATE EXTENSION pg_stat_statements"),
        (lambda: _without_permission(), "permission denied for view pg_stat_statements"),
    ],
)
def test_a_database_that_cannot_be_asked_is_one_line(dsn: Callable[[], str], says: str) -> None:
    printed = run_twinload("db", "advise", "--database", dsn())
    assert (printed.status, printed.out) == (2, "")
    (line,) = printed.err.splitlines()
    assert says in line
    assert "secret" not in line
    assert PASSWORD not in line


def _without_permission() -> str:
    dsn, name = _with_role("barred")
    shared_postgres().sql("REVOKE ALL ON pg_stat_statements FROM PUBLIC", name)
    return dsn


def _with_role(role: str) -> tuple[str, str]:
    """The DSN of a user without rights, and the name of a fresh database with the statistics."""
    dsn = fresh_database()
    name = dsn.rpartition("/")[2]
    shared_postgres().sql(
        f"CREATE EXTENSION pg_stat_statements; CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'", name
    )
    return dsn.replace("//postgres:", f"//{role}:"), name


def test_who_has_few_rights_is_told_what_stays_hidden_and_gets_the_rest() -> None:
    dsn, name = _with_role("clerk")
    sql = shared_postgres().sql
    for table in ("secrets", "mine"):
        sql(
            f"CREATE TABLE {table} (id int, v int);"
            f"INSERT INTO {table} SELECT n, n FROM generate_series(1, 20000) n; ANALYZE {table};",
            name,
        )
    for number in range(10):  # the dearer: what fails there must not be in the way of the other
        sql(f"SELECT id FROM secrets WHERE v = {number}", name)
    sql("SELECT id FROM mine WHERE v = 1; GRANT SELECT ON mine TO clerk", name)

    hidden = run_twinload("db", "advise", "--database", dsn)
    assert hidden.status == 0
    assert "hidden from this user: GRANT pg_read_all_stats" in hidden.out
    assert "add an index" not in hidden.out

    sql("GRANT pg_read_all_stats TO clerk", name)
    seen = run_twinload("db", "advise", "--database", dsn, "--measure")
    assert (seen.status, seen.err) == (0, "")
    assert "hidden" not in seen.out
    assert "not measured: must be owner of table mine" in seen.out
    assert 'ON "public"."mine" ("v")' in seen.out


def test_the_statistics_are_found_off_the_search_path() -> None:
    dsn = fresh_database()
    shared_postgres().sql(
        'CREATE SCHEMA "Ext"; CREATE EXTENSION pg_stat_statements SCHEMA "Ext"',
        dsn.rpartition("/")[2],
    )
    assert run_twinload("db", "advise", "--database", dsn).status == 0


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
