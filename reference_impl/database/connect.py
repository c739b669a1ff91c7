"""From a deployment's description to an open ledger. Drivers are loaded only for the store that is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from reference_impl.database.accounting import Accounting
from reference_impl.database.budgets import Budgets
from reference_impl.database.errors import BadDsn, DatabaseRefused, masked
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.database.port import LedgerReader, LedgerStore
from reference_impl.database.writer import LedgerWriter
from reference_impl.deployment import DatabaseSpec
from reference_impl.prices import PriceTable, load_prices
from reference_impl.telemetry import SystemEvent

if TYPE_CHECKING:
    from reference_impl.database.pool import ConnectionPool

__all__ = ["DSN_VARIABLE", "build_accounting", "ledger_of", "reader_of_dsn", "store_of_dsn"]

# The DSN holds a password, so it comes through the environment and is in no file and no process list.
DSN_VARIABLE = "TWINLOAD_DATABASE"

_POSTGRES = ("postgresql://", "postgres://")


def store_of_dsn(dsn: str, spec: DatabaseSpec = DatabaseSpec()) -> LedgerStore:  # noqa: B008 - immutable
    """The store that `dsn` names: `postgresql://...`, or the path of a SQLite file. Raises BadDsn, DatabaseRefused."""
    if dsn.startswith(_POSTGRES):
        pool = _pool(dsn, spec)
        from reference_impl.database.postgres_store import PostgresLedger

        return PostgresLedger(pool)
    path = _sqlite_path(dsn)
    from reference_impl.database.sqlite_store import SqliteLedger

    return SqliteLedger(path, busy_timeout_s=spec.acquire_timeout_s)


def reader_of_dsn(dsn: str) -> LedgerReader:
    """The ledger that `dsn` names, to look at: it is neither made nor migrated. Raises as `store_of_dsn`."""
    if dsn.startswith(_POSTGRES):
        # As if behind pgbouncer, because nobody says: it costs who asks once a round trip.
        pool = _pool(dsn, DatabaseSpec(min_size=1, max_size=2, behind_pgbouncer=True))
        from reference_impl.database.postgres_reader import PostgresReader

        return PostgresReader(pool)
    path = _sqlite_path(dsn)
    from reference_impl.database.sqlite_reader import SqliteReader

    return SqliteReader(path)


def _pool(dsn: str, spec: DatabaseSpec) -> ConnectionPool:
    _require("asyncpg", "PostgreSQL")
    from reference_impl.database.pool import ConnectionPool

    return ConnectionPool(
        dsn,
        min(spec.min_size, spec.max_size),
        spec.max_size,
        acquire_timeout_s=spec.acquire_timeout_s,
        statement_timeout_s=spec.statement_timeout_s,
        behind_pgbouncer=spec.behind_pgbouncer,
    )


def _sqlite_path(dsn: str) -> Path:
    if "://" in dsn or not dsn:
        raise BadDsn(
            f"database {masked(dsn)!r}: expected postgresql://user:password@host:port/name, "
            "or the path of a SQLite file"
        )
    _require("aiosqlite", "SQLite")
    return Path(dsn)


def ledger_of(spec: DatabaseSpec, dsn: str, folder: Path | None) -> LedgerStore | None:
    """The ledger that a deployment asks for; None for none.

    `dsn`: of PostgreSQL, or the path of SQLite's file; "" takes `folder`/ledger.sqlite. Raises DatabaseRefused in one line.
    """
    match spec.ledger:
        case "none":
            return None
        case "memory":
            return MemoryLedger()
        case "sqlite":
            if not dsn and folder is None:
                raise DatabaseRefused(f"ledger sqlite: name its file in {DSN_VARIABLE}")
            if dsn.startswith(_POSTGRES):
                raise BadDsn(f"ledger sqlite: {DSN_VARIABLE} names PostgreSQL, not a file")
            return store_of_dsn(dsn or str(folder / "ledger.sqlite") if folder else dsn, spec)
        case "postgres":
            if not dsn.startswith(_POSTGRES):
                raise BadDsn(
                    f"ledger postgres: set {DSN_VARIABLE} to postgresql://user:password@host:port/name"
                )
            return store_of_dsn(dsn, spec)


def build_accounting(
    store: LedgerStore,
    spec: DatabaseSpec,
    *,
    source: str,
    wall_clock: Callable[[], float],
    folder: Path | None = None,
    prices: PriceTable | None = None,
    on_event: Callable[[SystemEvent], None] | None = None,
) -> Accounting:
    """Ledger and budgets over `store`. `source`: unique to this process and start. `folder`: of spill files."""
    writer = LedgerWriter(
        store,
        spec,
        name=source,
        folder=folder,
        on_event=on_event,
        housekeeping=lambda: budgets.housekeeping(),
    )
    budgets = Budgets(store, writer, spec, name=source)
    return Accounting(
        store, writer, budgets, prices or load_prices(), source=source, wall_clock=wall_clock
    )


def _require(driver: str, what: str) -> None:
    if importlib.util.find_spec(driver) is None:
        raise DatabaseRefused(
            f"{what} needs {driver}: install the extra `database` (pip install 'twinload[database]')"
        )
