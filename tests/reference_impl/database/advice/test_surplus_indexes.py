"""Which indexes may be dropped, over a real PostgreSQL: all that is named at once, and nothing is lost."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from reference_impl.database.advice.report import SurplusIndex
from reference_impl.database.advice.surplus_indexes import surplus_indexes
from tests.servers.postgres import fresh_database

TABLE = "CREATE TABLE t (a int NOT NULL, b int, c int, n text);"


def found_in(*statements: str) -> list[SurplusIndex]:
    dsn = fresh_database()

    async def main() -> list[SurplusIndex]:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
            return await surplus_indexes(connection)
        finally:
            await connection.close()

    return asyncio.run(main())


def contained_in(*statements: str) -> dict[str, str]:
    return {found.index: found.other for found in found_in(*statements) if found.other}


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ("t (a)", "t (a, b)"),
        ("t (a, b)", "t (a, b) INCLUDE (c)"),
        ("t (a) INCLUDE (b)", "t (a, b)"),
        ("t (a) INCLUDE (c)", "t (a, b) INCLUDE (n, c)"),
        ("t (lower(n))", "t (lower(n), a)"),
        ("t (a) WHERE b > 0", "t (a, c) WHERE b > 0"),
        ("t (n text_pattern_ops)", "t (n text_pattern_ops, a)"),
        ("t USING hash (a)", "t USING hash (a)"),
    ],
)
def test_an_index_that_another_begins_with_is_named_with_it(small: str, large: str) -> None:
    statements = (
        TABLE,
        f"CREATE INDEX small_one ON {small}",
        f"CREATE INDEX a_large_one ON {large}",
    )
    assert contained_in(*statements) == {"public.small_one": "public.a_large_one"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("t (a, b)", "t (a) INCLUDE (b, c)"),
        ("t (a) INCLUDE (c)", "t (a, b)"),
        ("t (n text_pattern_ops)", "t (n, a)"),
        ("t (n)", "t (n text_pattern_ops, a)"),
        ('t (n COLLATE "C")', 't (n COLLATE "POSIX", a)'),
        ("t (a DESC)", "t (a, b)"),
        ("t (a NULLS FIRST)", "t (a, b)"),
        ("t (a)", "t (a, b) WHERE b > 0"),
        ("t (a) WHERE b > 0", "t (a, b)"),
        ("t (lower(n))", "t (upper(n), a)"),
        ("t USING hash (a)", "t (a, b)"),
        ("t USING brin (a)", "t USING brin (a) WITH (pages_per_range = 4)"),
        ("t USING brin (a int4_minmax_multi_ops)", "t USING brin (a)"),
        (
            "t USING brin (a int4_minmax_multi_ops (values_per_range = 16))",
            "t USING brin (a int4_minmax_multi_ops)",
        ),
    ],
)
def test_an_index_that_another_cannot_be_read_for_is_not_contained_in_it(
    one: str, other: str
) -> None:
    statements = (TABLE, f"CREATE INDEX z_one ON {one}", f"CREATE INDEX a_other ON {other}")
    assert contained_in(*statements) == {}


def test_what_a_constraint_needs_is_never_named() -> None:
    found = found_in(
        "CREATE TABLE p (id int PRIMARY KEY, a int UNIQUE, r int4range, b int NOT NULL,"
        " EXCLUDE USING gist (r WITH &&));"
        "CREATE UNIQUE INDEX p_b ON p (b); ALTER TABLE p REPLICA IDENTITY USING INDEX p_b;"
        "CREATE INDEX p_id_a ON p (id, a); CREATE INDEX p_a_b ON p (a, b);"
        "CREATE INDEX p_r ON p USING gist (r)"
    )
    assert {surplus.index for surplus in found} == {"public.p_id_a", "public.p_a_b", "public.p_r"}
    assert [surplus.other for surplus in found if surplus.index == "public.p_r"] == [
        "public.p_r_excl"
    ]


def test_the_part_of_a_partitioned_index_is_not_named_for_it_cannot_be_dropped_alone() -> None:
    found = found_in(
        "CREATE TABLE parts (a int, b int) PARTITION BY RANGE (a);"
        "CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (9);"
        "CREATE INDEX ON parts (a); CREATE INDEX ON parts (a, b); CREATE INDEX own ON part (b)"
    )
    assert [surplus.index for surplus in found] == ["public.own"]


def test_whoever_drops_all_that_is_named_keeps_an_index_for_each_of_them() -> None:
    found = found_in(
        TABLE,
        "CREATE INDEX a1 ON t (a); CREATE INDEX a2 ON t (a, b); CREATE INDEX a3 ON t (a, b, c);"
        "CREATE INDEX twin_1 ON t (b); CREATE INDEX twin_2 ON t (b); CREATE INDEX twin_3 ON t (b)",
    )
    assert {surplus.index: surplus.other for surplus in found} == {
        "public.a1": "public.a3",
        "public.a2": "public.a3",
        "public.twin_2": "public.twin_1",
        "public.twin_3": "public.twin_1",
    }


def test_tables_of_one_name_in_two_schemas_are_two_tables() -> None:
    found = found_in(
        'CREATE SCHEMA "Other-one"; CREATE TABLE "Other-one".t (a int, b int); ' + TABLE,
        'CREATE INDEX short ON t (a); CREATE INDEX long ON "Other-one".t (a, b)',
        'CREATE INDEX short ON "Other-one".t (a)',
    )
    assert {(surplus.index, surplus.table, surplus.other) for surplus in found} == {
        ('"Other-one".short', '"Other-one".t', '"Other-one".long'),
        ("public.short", "public.t", ""),
    }
