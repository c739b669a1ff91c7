"""Numbers as people read them: milliseconds below a second, percent, dollars, a dash for what was not measured."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["DASH", "MINUS", "TIMES", "amount", "difference", "interval", "relative"]

DASH: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"
TIMES: Final = "\N{MULTIPLICATION SIGN}"


def amount(value: float, unit: str) -> str:
    """`value` in `unit` (`s`, `/s`, `fraction`, `usd`, or "" for a count) with about three significant digits."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "unbounded"
    if unit == "s":
        if abs(value) >= 100:
            return f"{value:,.0f} s"
        return f"{value:.3g} s" if abs(value) >= 1 else f"{_plain(value * 1e3)} ms"
    if unit == "fraction":
        return f"{value:.1%}"
    if unit == "usd":
        return f"${value:,.2f}" if abs(value) >= 1 else f"${_plain(value)}"
    text = f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"
    return f"{text}/s" if unit == "/s" else text


def _plain(value: float) -> str:
    return (
        f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.3g}"
        if abs(value) >= 1e-3 or value == 0
        else f"{value:.1g}"
    )


def difference(value: float, unit: str) -> str:
    """A signed amount; fractions differ by percentage points."""
    if math.isnan(value):
        return DASH
    sign = "+" if value > 0 else MINUS if value < 0 else "±"
    text = f"{abs(value) * 100:.2g} points" if unit == "fraction" else amount(abs(value), unit)
    return f"{sign}{text}"


def interval(low: float, high: float, unit: str) -> str:
    """An interval of a difference, or a dash where none can be given."""
    if math.isnan(low) or math.isnan(high):
        return DASH
    return f"{difference(low, unit)} … {difference(high, unit)}"


def relative(value: float) -> str:
    """A signed percentage."""
    if math.isnan(value):
        return DASH
    return f"{value:+.1%}".replace("-", MINUS) if value else "±0%"
