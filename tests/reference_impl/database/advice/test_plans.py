"""Plans as PostgreSQL prints them, and what is read in them."""

from __future__ import annotations

from typing import Any

import pytest

from reference_impl.database.advice.plans import candidates, parameter_columns

COLUMNS = {("public", "t"): {"id", "a", "order-id", 'say "so"', "name"}}


def scan(condition: str, **node: Any) -> dict[str, Any]:
    return {
        "Node Type": "Seq Scan",
        "Schema": "public",
        "Relation Name": "t",
        "Plan Rows": 5,
        "Filter": condition,
        **node,
    }


@pytest.mark.parametrize(
    ("condition", "columns"),
    [
        ("(t.a = $1)", ("a",)),
        ("((t.a = $1) AND (t.id > $2))", ("a", "id")),
        ('("order-items".a = $1)', ("a",)),
        ('(t."order-id" = $1)', ("order-id",)),
        ('(t."say ""so""" = $1)', ('say "so"',)),
        ("((t.name)::text = $1)", ("name",)),
        ("(t.a = ANY ($1))", ("a",)),
    ],
)
def test_the_columns_of_a_comparison_are_found_whatever_their_names(
    condition: str, columns: tuple[str, ...]
) -> None:
    (candidate,) = candidates(scan(condition), COLUMNS)
    assert (candidate.relation, candidate.columns) == (("public", "t"), columns)
    assert parameter_columns(scan(condition)).get(1, (("public", "t"), columns[0])) == (
        ("public", "t"),
        columns[0],
    )


@pytest.mark.parametrize(
    "condition",
    ["(lower(t.name) = $1)", "((t.a)::numeric = $1)", "((t.a % 5) = $1)", "(t.unknown = $1)"],
)
def test_what_an_index_on_the_column_does_not_serve_is_no_candidate(condition: str) -> None:
    assert candidates(scan(condition), COLUMNS) == []


def test_a_table_of_the_same_name_in_another_schema_is_another_table() -> None:
    assert candidates(scan("(t.a = $1)", Schema="other"), COLUMNS) == []
