"""Proposals for tables that are named as the catalogue allows, over a real PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest

from reference_impl.database.advice.advise import advise
from reference_impl.database.advice.report import Advice
from reference_impl.database.pool import ConnectionPool
from tests.servers.postgres import fresh_database

ODD = 'order "items"; DROP TABLE t'
QUOTED = '"order ""items""; DROP TABLE t"'


def advice_for(prepare: str, *queries: tuple[str, int], measure: bool = True) -> Advice:
    dsn = fresh_database()

    async def main() -> Advice:
        pool = ConnectionPool(dsn, 1, 2, statement_timeout_s=60)
        await pool.initialize()
        try:
            async with pool.acquire() as connection:
                await connection.execute(f"CREATE EXTENSION pg_stat_statements; {prepare}; ANALYZE")
                for query, value in queries:
                    await connection.fetch(query, value)
            advice = await advise(pool, measure=measure)
            async with pool.acquire() as connection:
                for index in advice.indexes:  # what is proposed can be done as it stands
                    await connection.execute(index.sql)
            return advice
        finally:
            await pool.close()

    return asyncio.run(main())


def table(name: str, column: str = "v", rows: int = 20_000) -> str:
    return (
        f"CREATE TABLE {name} (id int, {column} int);"
        f"INSERT INTO {name} SELECT n, n FROM generate_series(1, {rows}) n;"
    )


@pytest.mark.parametrize("name", ["order-items", ODD, "Größe", "select", "a.b", "é" * 31])
def test_a_table_and_a_column_of_any_name_get_their_index(name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    advice = advice_for(table(quoted, quoted), (f"SELECT id FROM {quoted} WHERE {quoted} = $1", 7))
    (index,) = advice.indexes
    assert (index.schema, index.table, index.columns) == ("public", name, (name,))
    assert f'ON "public".{quoted} ({quoted})' in index.sql
    assert index.measured_gain is not None
    assert index.note == ""


def test_tables_of_one_name_in_two_schemas_are_advised_apart_off_the_search_path_too() -> None:
    # The second asks for an order too: PostgreSQL 18 counts statements alike but for the schema as one.
    advice = advice_for(
        "CREATE SCHEMA shop;" + table("shop.t") + table("t", "w"),
        ("SELECT id FROM shop.t WHERE v = $1", 7),
        ("SELECT id FROM t WHERE w = $1 ORDER BY id", 7),
    )
    assert {(index.schema, index.table, index.columns) for index in advice.indexes} == {
        ("shop", "t", ("v",)),
        ("public", "t", ("w",)),
    }
    assert [index.note for index in advice.indexes] == ["", ""]
