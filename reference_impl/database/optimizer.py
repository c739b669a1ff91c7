"""QueryOptimizer: index statements that can do nothing else, and operations in batches."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

__all__ = [
    "InvalidIdentifier",
    "QueryOptimizer",
    "create_index",
    "index_name",
    "quoted_name",
]

T = TypeVar("T")

MAX_IDENTIFIER_BYTES: Final = 63  # PostgreSQL cuts longer names off without a word
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}\Z", re.ASCII)


class InvalidIdentifier(ValueError):
    """A name that is no plain SQL identifier: a mistake, or an injection."""


def _checked(identifier: str) -> str:
    """`identifier`, if it is letters, digits and underscores; else raises InvalidIdentifier."""
    if not isinstance(identifier, str) or not _IDENTIFIER.match(identifier):
        raise InvalidIdentifier(
            f"{str(identifier)[:80]!r} is no identifier: expected letters, digits and underscores, "
            f"not beginning with a digit, at most {MAX_IDENTIFIER_BYTES} characters"
        )
    return identifier


def quoted_name(name: str) -> str:
    """A name that the catalogue has, in double quotes. What somebody typed is checked first."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def index_name(table: str, columns: Sequence[str]) -> str:
    """`ix_TABLE_COLUMN_...`; what is too long ends in a digest, so that different indexes keep different names."""
    name = "_".join(("ix", table, *columns))
    encoded = name.encode()
    if len(encoded) <= MAX_IDENTIFIER_BYTES:
        return name
    digest = hashlib.blake2b("\0".join((table, *columns)).encode(), digest_size=5).hexdigest()
    return f"{encoded[: MAX_IDENTIFIER_BYTES - 11].decode(errors='ignore')}_{digest}"


def create_index(
    relation: Sequence[str],
    columns: Sequence[str],
    *,
    concurrently: bool = False,
    if_not_exists: bool = True,
) -> str:
    """The statement for one index on `columns` of `relation` (schema and table, or table): names of the catalogue, as they are."""
    how = " ".join(
        (
            "CREATE INDEX",
            *(["CONCURRENTLY"] if concurrently else []),
            *(["IF NOT EXISTS"] if if_not_exists else []),
        )
    )
    name = quoted_name(index_name(relation[-1], columns))
    on = ".".join(map(quoted_name, relation))
    return f"{how} {name} ON {on} ({', '.join(map(quoted_name, columns))});"


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
        statements = []
        for field in fields:
            qualified = field if table is None else f"{table}.{field}"
            *owner, last = qualified.split(".")
            columns = [column.strip() for column in last.split(",")]
            if not 1 <= len(owner) <= 2:
                raise InvalidIdentifier(
                    f"{field[:80]!r}: expected table.column, schema.table.column or table.column,column"
                )
            statements.append(
                create_index(
                    [_checked(part) for part in owner],
                    [_checked(column) for column in columns],
                    concurrently=concurrently,
                )
            )
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
