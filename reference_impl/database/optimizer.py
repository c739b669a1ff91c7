"""QueryOptimizer: index statements that can do nothing else, and operations in batches."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

__all__ = ["InvalidIdentifier", "QueryOptimizer", "index_name", "quoted"]

T = TypeVar("T")

MAX_IDENTIFIER_BYTES: Final = 63  # PostgreSQL cuts longer names off without a word
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}\Z", re.ASCII)


class InvalidIdentifier(ValueError):
    """A name that is no plain SQL identifier: a mistake, or an injection."""


def quoted(identifier: str) -> str:
    """`identifier` in double quotes. Raises InvalidIdentifier unless it is letters, digits and underscores."""
    if not isinstance(identifier, str) or not _IDENTIFIER.match(identifier):
        raise InvalidIdentifier(
            f"{str(identifier)[:80]!r} is no identifier: expected letters, digits and underscores, "
            f"not beginning with a digit, at most {MAX_IDENTIFIER_BYTES} characters"
        )
    return f'"{identifier}"'


def index_name(table: str, columns: Sequence[str]) -> str:
    """`ix_TABLE_COLUMN_...`; what is too long ends in a digest, so that different indexes keep different names."""
    name = "_".join(("ix", table, *columns))
    if len(name) <= MAX_IDENTIFIER_BYTES:
        return name
    digest = hashlib.blake2b("\0".join((table, *columns)).encode(), digest_size=5).hexdigest()
    return f"{name[: MAX_IDENTIFIER_BYTES - 11]}_{digest}"


class QueryOptimizer:
    """Helpers for those who write queries. What a running database lacks is found by `advice.advise`."""

    @staticmethod
    def add_indexes(
        fields: Iterable[str], *, table: str | None = None, concurrently: bool = False
    ) -> str:
        """`CREATE INDEX` statements, one a line: one for each field.

        Args:
            fields: `table.column` or `schema.table.column`; `table.a,b` for one index on both columns. With `table`, bare
                columns. Names are taken as they are written: PostgreSQL folds unquoted ones to lower case.
            concurrently: do not lock the table meanwhile (outside of transactions only).

        Raises:
            InvalidIdentifier: any part is not a plain identifier. Nothing of it is ever pasted into SQL unquoted.
        """
        if isinstance(fields, str):
            raise InvalidIdentifier("fields is one text: give a list of them")
        how = (
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS"
            if concurrently
            else "CREATE INDEX IF NOT EXISTS"
        )
        statements = []
        for field in fields:
            qualified = field if table is None else f"{table}.{field}"
            *owner, last = qualified.split(".")
            columns = [column.strip() for column in last.split(",")]
            if not 1 <= len(owner) <= 2:
                raise InvalidIdentifier(
                    f"{field[:80]!r}: expected table.column, schema.table.column or table.column,column"
                )
            relation = ".".join(quoted(part) for part in owner)
            on = ", ".join(quoted(column) for column in columns)
            name = quoted(index_name(owner[-1], columns))
            statements.append(f"{how} {name} ON {relation} ({on});")
        return "\n".join(statements)

    @staticmethod
    def batch_operations(operations: Iterable[T], batch_size: int = 1000) -> Iterator[list[T]]:
        """`operations` in lists of `batch_size`, the last perhaps shorter; read only as far as asked for.

        Raises ValueError at once if `batch_size` is less than 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        return _batches(iter(operations), batch_size)


def _batches(operations: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(itertools.islice(operations, size)):
        yield batch
