"""Numbers as people read them: milliseconds below a second, percent, dollars, a dash for what was not measured."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["DASH", "MINUS", "TIMES", "amount", "difference", "interval", "percent", "relative"]

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
        in_s = abs(value) >= 1
        return f"{_digits(value)} s" if in_s else f"{_digits(value * 1e3)} ms"
    if unit == "fraction":
        return percent(value)
    if unit == "usd":
        return f"${value:,.2f}" if abs(value) >= 1 or value == 0 else f"${value:.5f}"
    return f"{_digits(value)}{unit}"


def percent(value: float) -> str:
    """A fraction in percent; never rounded to 0% or 100% when it is neither."""
    text = f"{value:.1%}"
    if text == "0.0%" and value > 0:
        return "<0.1%"
    if text == "100.0%" and value < 1:
        return ">99.9%"
    return f"{value:.0%}" if value in (0, 1) else text


def _digits(value: float) -> str:
    """Three significant digits and no exponent; what is below a thousandth is told as such."""
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    if size < 1e-9:
        return "0"
    if size < 1e-3:
        return "<0.001"
    return f"{value:.3g}"


def difference(value: float, unit: str) -> str:
    """A signed amount; fractions differ by percentage points."""
    if math.isnan(value):
        return DASH
    size = abs(value) if abs(value) > 1e-12 else 0.0
    text = f"{size * 100:.2g} points" if unit == "fraction" else amount(size, unit)
    if size == 0 or text.startswith("<"):
        return f"±{text}"
    return f"{'+' if value > 0 else MINUS}{text}"


def interval(low: float, high: float, unit: str) -> str:
    """An interval of a difference, or a dash where none can be given."""
    if math.isnan(low) or math.isnan(high):
        return DASH
    return f"{difference(low, unit)} … {difference(high, unit)}"


def relative(value: float) -> str:
    """A signed percentage."""
    if math.isnan(value):
        return DASH
    if abs(value) < 5e-4:
        return "±0%" if value == 0 else "±0.0%"
    return f"{value:+.1%}".replace("-", MINUS)
