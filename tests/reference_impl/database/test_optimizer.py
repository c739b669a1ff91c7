"""The optimizer: nothing but an index is ever created, whatever the names are."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.database.optimizer import InvalidIdentifier, QueryOptimizer
from reference_impl.database.pool_sizing import erlang_c, judge_pool, mean_wait_s

NAME = r'"[A-Za-z_][A-Za-z0-9_]{0,62}"'
STATEMENT = re.compile(
    rf"CREATE INDEX IF NOT EXISTS {NAME} ON {NAME}(\.{NAME})? \({NAME}(, {NAME})*\);"
)
hostile = st.one_of(
    st.text(),
    st.sampled_from(
        [
            'a"; DROP TABLE users; --',
            "t.a); DELETE FROM t; --",
            "t.a--",
            "t.a/*",
            'u&"x"',
            "t.a\x00",
            "t.\u0430",
            "t.a\n",
            "$1",
            "t.a;b",
            "(select 1)",
        ]
    ),
    st.from_regex(r"[a-z]{1,70}(\.[a-z\"; ]{1,9}){0,3}(,[a-z)]{1,3}){0,2}", fullmatch=True),
)


@given(st.lists(hostile, max_size=4), st.none() | hostile)
def test_add_indexes_never_makes_sql_that_does_more_than_create_indexes(
    fields: list[str], table: str | None
) -> None:
    try:
        sql = QueryOptimizer.add_indexes(fields, table=table)
    except InvalidIdentifier:
        return
    lines = sql.split("\n") if sql else []
    assert len(lines) == len(fields)
    for line in lines:
        assert STATEMENT.fullmatch(line)


@given(st.lists(st.from_regex(r"[a-z_][a-z0-9_]{0,62}", fullmatch=True), min_size=1, max_size=3))
def test_plain_identifiers_are_accepted_and_names_fit(columns: list[str]) -> None:
    sql = QueryOptimizer.add_indexes([",".join(columns)], table="requests")
    assert STATEMENT.fullmatch(sql)


def test_the_lesson_s_call_works_as_written() -> None:
    assert QueryOptimizer.add_indexes(["users.email", "sales.orders.key_id,at_s"]) == (
        'CREATE INDEX IF NOT EXISTS "ix_users_email" ON "users" ("email");\n'
        'CREATE INDEX IF NOT EXISTS "ix_orders_key_id_at_s" ON "sales"."orders" ("key_id", "at_s");'
    )
    assert "CONCURRENTLY" in QueryOptimizer.add_indexes(["a"], table="t", concurrently=True)


def test_long_names_of_different_columns_stay_different() -> None:
    first, second = (
        QueryOptimizer.add_indexes([f"t.{'a' * 40},{'b' * 40}{end}"]).split('"')[1]
        for end in ("x", "y")
    )
    assert first != second
    assert len(first) == 63


@pytest.mark.parametrize("fields", ["users.email", ["email"], ["a.b.c.d"], [""], ["t."]])
def test_what_is_no_field_is_an_error_in_one_line(fields: list[str]) -> None:
    with pytest.raises(InvalidIdentifier) as caught:
        QueryOptimizer.add_indexes(fields)
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers()), st.integers(1, 50))
def test_batches_hold_every_operation_once_in_order(operations: list[int], size: int) -> None:
    batches = list(QueryOptimizer.batch_operations(operations, size))
    assert [x for batch in batches for x in batch] == operations
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches)


def test_operations_are_read_only_as_far_as_asked_for() -> None:
    source = iter(range(10))
    assert next(QueryOptimizer.batch_operations(source, 3)) == [0, 1, 2]
    assert next(source) == 3
    with pytest.raises(ValueError, match="at least 1"):
        QueryOptimizer.batch_operations([], 0)


def test_erlang_c_has_its_textbook_values() -> None:
    assert erlang_c(1, 0.5) == pytest.approx(0.5)  # M/M/1: the utilisation
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(10, 8.0) == pytest.approx(0.40918, abs=1e-5)
    assert mean_wait_s(1, 5, 0.1) == pytest.approx(0.1)


def test_a_pool_of_two_under_a_load_of_six_is_too_small() -> None:
    small = judge_pool(2, 200, 0.03)
    assert (small.verdict, small.wait_s) == ("too small", float("inf"))
    assert 7 <= small.needed <= 10
    assert judge_pool(small.needed, 200, 0.03).verdict == "right"
    assert judge_pool(200, 200, 0.03).verdict == "too large"


def test_the_need_of_a_large_load_is_found_at_once_and_is_what_its_definition_says() -> None:
    assert judge_pool(10, 200_000, 1.0).needed > 200_000
    for load in (0.0, 0.5, 3.0, 17.3):
        needed = judge_pool(1, load, 1.0).needed
        assert mean_wait_s(needed, load, 1.0) <= 0.1
        assert needed == 1 or mean_wait_s(needed - 1, load, 1.0) > 0.1


@pytest.mark.parametrize(
    ("size", "rate_per_s", "hold_s"),
    [(0, 1, 1), (1, -1, 1), (1, float("nan"), 1), (1, 1, float("inf")), (1, 1e9, 1)],
)
def test_a_pool_that_cannot_be_is_not_judged(size: int, rate_per_s: float, hold_s: float) -> None:
    with pytest.raises(ValueError, match="expected a size of at least 1"):
        judge_pool(size, rate_per_s, hold_s)
