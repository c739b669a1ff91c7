"""What is found, as it is printed and as it is JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

from reference_impl.database.pool_sizing import PoolVerdict

__all__ = ["Advice", "IndexAdvice", "StatementAdvice", "SurplusIndex"]

Source = Literal["hypopg", "formula"]


class IndexAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """An index to add. Gains are ratios before/after: of the planner's costs, and of measured times (NaN-free: None = not measured)."""

    sql: str
    schema: str
    table: str
    columns: tuple[str, ...]
    query: str
    calls: int
    estimated_gain: float
    source: Source
    measured_gain: float | None = None
    before_ms: float | None = None
    after_ms: float | None = None
    note: str = ""


class StatementAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """A statement that is sent again and again for one row: N+1 reads, or single inserts."""

    query: str
    calls: int
    total_ms: float
    advice: str


class SurplusIndex(msgspec.Struct, frozen=True, kw_only=True):
    """An index that costs and does not serve: never read, or contained in `other`."""

    index: str
    table: str
    size_bytes: int
    reason: str
    other: str = ""


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found; `statements` were looked at, `unplanned` could not be planned without their values.

    `hidden`: statements of others whose text this user may not read.
    """

    indexes: tuple[IndexAdvice, ...] = ()
    batches: tuple[StatementAdvice, ...] = ()
    surplus: tuple[SurplusIndex, ...] = ()
    pool: PoolVerdict | None = None
    statements: int = 0
    unplanned: int = 0
    hidden: int = 0
