"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.wording import DASH, MINUS, amount, difference, interval, percent, relative


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.0123, "s", "12.3 ms"),
        (1.5, "s", "1.5 s"),
        (1234.0, "s", "1,234 s"),
        (7e-15, "s", "0 ms"),
        (4e-7, "s", "<0.001 ms"),
        (0.0, "s", "0 ms"),
        (math.nan, "s", DASH),
        (math.inf, "/s", "unbounded"),
        (19.67, "/s", "19.7/s"),
        (8819.0, "", "8,819"),
        (0.00042, "usd", "$0.00042"),
        (1234.5, "usd", "$1,234.50"),
        (0.9967, "fraction", "99.7%"),
    ],
)
def test_an_amount_is_told_in_three_digits(value: float, unit: str, expected: str) -> None:
    assert amount(value, unit) == expected


def test_a_percentage_is_never_rounded_to_all_or_nothing() -> None:
    assert [percent(v) for v in (0.0, 1e-5, 0.99999, 1.0)] == ["0%", "<0.1%", ">99.9%", "100%"]


def test_differences_carry_their_sign() -> None:
    assert difference(0.002, "s") == "+2 ms"
    assert difference(-0.05, "fraction") == f"{MINUS}5 points"
    assert difference(0.0, "usd") == "±$0.00"
    assert interval(-0.01, 0.02, "s") == f"{MINUS}10 ms … +20 ms"
    assert interval(math.nan, math.nan, "s") == DASH
    assert [relative(v) for v in (0.0, -1e-5, -0.125, math.nan)] == [
        "±0%",
        "±0.0%",
        f"{MINUS}12.5%",
        DASH,
    ]


@given(st.floats(-1e9, 1e9), st.sampled_from(["s", "/s", "fraction", "usd", ""]))
def test_no_number_is_told_with_an_exponent(value: float, unit: str) -> None:
    assert "e" not in amount(value, unit)
