"""What people ask the ledger: spend by key, model, day or outcome; what the cache saved; what retries and failures wasted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from reference_impl.database.entries import LedgerEntry
from reference_impl.database.port import GROUPS, Group, Spend

__all__ = ["POSTGRES_DAY", "SQLITE_DAY", "export_parquet", "spend_sql", "spends", "total"]

POSTGRES_DAY: Final = "to_char(to_timestamp(at_s) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
SQLITE_DAY: Final = "strftime('%Y-%m-%d', at_s, 'unixepoch')"

_COLUMN: Final[dict[Group, str]] = {"key": "key_id", "model": "model", "outcome": "outcome"}


def spend_sql(group: Group, day: str, since: str) -> str:
    """The query behind `LedgerStore.spend`: `day` is the dialect's expression, `since` its placeholder."""
    if group not in GROUPS:
        raise ValueError(f"group {group!r}: expected one of {', '.join(GROUPS)}")
    expression = _COLUMN.get(group, day)
    return f"""
        SELECT {expression} AS name, count(*), sum(input_tokens), sum(cached_tokens),
            sum(output_tokens), sum(cost_nanousd), sum(saved_nanousd),
            sum(CASE WHEN cache IN ('off', 'miss') THEN 0 ELSE 1 END),
            sum(CASE WHEN attempts > 1 THEN attempts - 1 ELSE 0 END),
            sum(CASE WHEN outcome = 'ok' THEN 0 ELSE cost_nanousd END)
        FROM ledger_entries WHERE at_s >= {since} GROUP BY name"""  # noqa: S608 - constants of this module


def spends(rows: Iterable[Any]) -> list[Spend]:
    """Rows of `spend_sql` in order of their group."""
    found = [
        Spend(
            **dict(zip(Spend.__struct_fields__, [row[0], *map(int, tuple(row)[1:])], strict=True))
        )
        for row in rows
    ]
    return sorted(found, key=lambda spend: spend.group)


def total(rows: Iterable[Spend]) -> Spend:
    """The sum of `rows`, as one row named `total`."""
    rows = list(rows)
    names = Spend.__struct_fields__[1:]
    return Spend(group="total", **{name: sum(getattr(row, name) for row in rows) for name in names})


_PARQUET: Final = {str: pa.string(), int: pa.int64(), float: pa.float64()}


async def export_parquet(pages: AsyncIterator[list[LedgerEntry]], path: Path) -> int:
    """Write entries to a Parquet file, a page at a time, whole or not at all; returns how many.

    Raises FileExistsError for a file that is there, other OSErrors where it cannot be written.
    """
    if path.exists():  # noqa: ASYNC240 - once, before any work
        raise FileExistsError(f"{path} exists already; name another file")
    schema = pa.schema(
        [(field.name, _PARQUET[field.type]) for field in msgspec.structs.fields(LedgerEntry)]
    )
    written = 0
    partial = path.with_name(path.name + ".partial")
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            async for page in pages:
                columns = {name: [getattr(entry, name) for entry in page] for name in schema.names}
                writer.write_table(pa.table(columns, schema=schema))
                written += len(page)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return written
