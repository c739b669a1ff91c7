"""The ledger in one SQLite file: the embedded default, for one machine.

Several processes may share the file: each change is one `BEGIN IMMEDIATE` transaction, which waits for the others. Blocking
work runs on the connection's own thread (aiosqlite).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import aiosqlite
import msgspec

from reference_impl.batches.port import BatchStore
from reference_impl.database.aggregates import SQLITE_DAY, spend_sql, spends
from reference_impl.database.entries import (
    ENTRY_FIELDS,
    UNCOUNTED,
    EntryBatch,
    KeyBudget,
    LedgerEntry,
)
from reference_impl.database.errors import (
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    DiskFull,
    InvalidValue,
    StatementFailed,
    one_line,
)
from reference_impl.database.memory_store import granted_nanousd
from reference_impl.database.migrations import Step, check_version, steps
from reference_impl.database.port import NOTICE_PART, Grant, Group, Spend
from reference_impl.telemetry import StationSample

__all__ = ["SqliteLedger", "book_entries"]

T = TypeVar("T")

PAGE: Final = 10_000
_COLUMNS: Final = ", ".join(ENTRY_FIELDS)
_INSERT: Final = f"INTO ledger_entries ({_COLUMNS}) VALUES ({', '.join('?' * len(ENTRY_FIELDS))})"
# Unix time to the millisecond; `unixepoch('subsec')` needs SQLite 3.42.
_NOW: Final = "((julianday('now') - 2440587.5) * 86400.0)"


class SqliteLedger:
    """`LedgerStore` in the file at `path`. `busy_timeout_s`: how long to wait for another process's transaction."""

    def __init__(self, path: Path, *, busy_timeout_s: float = 5.0) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._connection: aiosqlite.Connection | None = None

    async def open(self) -> None:
        if self._connection is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = await aiosqlite.connect(
                self._path, timeout=self._busy_timeout_s, isolation_level=None
            )
        except (OSError, sqlite3.Error) as error:
            raise DatabaseRefused(f"ledger {self._path}: {one_line(error)}") from error
        try:
            await self._configured()
            await self._run(lambda db: migrate_sqlite(db, steps("sqlite")))
        except BaseException:
            await self.aclose()
            raise

    async def write(self, batch: EntryBatch) -> int:
        return await self.transaction(lambda db: _write(db, batch))

    async def reserve(
        self, key_id: str, hold: str, need_nanousd: int, want_nanousd: int, hold_s: float
    ) -> Grant:
        return await self.transaction(
            lambda db: _reserve(db, key_id, hold, need_nanousd, want_nanousd, hold_s)
        )

    async def set_budget(self, key_id: str, limit_nanousd: int | None) -> None:
        def change(db: sqlite3.Connection) -> None:
            if limit_nanousd is None:
                db.execute("DELETE FROM ledger_budgets WHERE key_id = ?", (key_id,))
                db.execute("DELETE FROM ledger_holds WHERE key_id = ?", (key_id,))
                return
            db.execute(
                "INSERT INTO ledger_budgets (key_id, limit_nanousd, spent_nanousd) "
                "SELECT ?1, ?2, coalesce(sum(cost_nanousd), 0) FROM ledger_entries "
                "WHERE key_id = ?1 "
                "ON CONFLICT (key_id) DO UPDATE SET limit_nanousd = excluded.limit_nanousd",
                (key_id, limit_nanousd),
            )

        await self.transaction(change)

    async def budgets(self) -> list[KeyBudget]:
        rows = await self.query(
            "SELECT key_id, limit_nanousd, spent_nanousd, held_nanousd FROM ledger_budgets "
            "ORDER BY key_id"
        )
        return [KeyBudget(*row) for row in rows]

    def batches(self) -> BatchStore:
        from reference_impl.database.sqlite_batches import SqliteBatches

        return SqliteBatches(self)

    async def spend(self, group: Group, *, since_s: float = 0.0) -> list[Spend]:
        return spends(await self.query(spend_sql(group, SQLITE_DAY, "?"), since_s))

    async def entries(self, *, since_s: float = 0.0) -> AsyncIterator[list[LedgerEntry]]:
        after = ""
        query = (
            f"SELECT {_COLUMNS} FROM ledger_entries WHERE entry_id > ? AND at_s >= ? "  # noqa: S608 - constants
            f"ORDER BY entry_id LIMIT {PAGE}"
        )
        while rows := await self.query(query, after, since_s):
            page = [LedgerEntry(**dict(zip(ENTRY_FIELDS, row, strict=True))) for row in rows]
            yield page
            after = page[-1].entry_id

    def samples(self, *, origin_s: float = 0.0) -> list[StationSample]:  # noqa: ARG002 - no pool
        return []

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _configured(self) -> None:
        """Set the journal's mode: SQLite does not wait for others who do the same at the same instant, so we do."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._busy_timeout_s
        while True:
            try:
                await self._run(_configure)
                return
            except DatabaseUnavailable:
                if loop.time() >= give_up_s:
                    raise
                await asyncio.sleep(0.01)

    async def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in one transaction on the connection's thread, to its end even if the caller is cancelled."""

        def whole(db: sqlite3.Connection) -> T:
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                db.rollback()
                raise
            return result

        return await self._run(whole)

    async def query(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        """The rows of a statement."""

        def fetch(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
            return db.execute(sql, args).fetchall()

        return await self._run(fetch)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the connection's thread, to its end even if the caller is cancelled."""
        connection = self._connection
        if connection is None:
            raise DatabaseUnavailable(f"ledger {self._path} is not open", safe_to_repeat=True)
        try:
            # aiosqlite's own way to run a function on its thread, in turn; it has no public one for a whole transaction.
            run = cast("Callable[..., Awaitable[T]]", connection._execute)  # noqa: SLF001
            return await run(work, connection._conn)  # noqa: SLF001
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> DatabaseError:
        text = f"ledger {self._path}: {one_line(error)}"
        if isinstance(error, OverflowError | UnicodeError):  # a value that SQLite never saw
            return InvalidValue(text, safe_to_repeat=True)
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if isinstance(code, int) else None
        if primary == sqlite3.SQLITE_FULL:
            return DiskFull(text, safe_to_repeat=True)
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR):
            return DatabaseUnavailable(text, safe_to_repeat=True)
        if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            return DatabaseRefused(text)
        if primary in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG):
            return InvalidValue(text, safe_to_repeat=True)
        return StatementFailed(text)


def migrate_sqlite(db: sqlite3.Connection, planned: list[Step]) -> list[int]:
    """Apply what is missing in one transaction; the versions applied. Raises SchemaTooNew."""
    check_version(db.execute("PRAGMA user_version").fetchone()[0], len(planned))
    db.execute("BEGIN IMMEDIATE")
    try:
        present = db.execute("PRAGMA user_version").fetchone()[0]
        check_version(present, len(planned))
        missing = [step for step in planned if step[0] > present]
        for version, sql in missing:
            for statement in _statements(sql):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {version:d}")
        db.execute("COMMIT")
    except BaseException:
        db.rollback()
        raise
    return [version for version, _ in missing]


def _statements(sql: str) -> list[str]:
    """The statements of a script: `executescript` would commit the transaction that they belong to."""
    found, current = [], ""
    for line in sql.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            found.append(current)
            current = ""
    return found


def _configure(db: sqlite3.Connection) -> None:
    # Readers do not wait for the writer. NORMAL: a power cut may cost the last transactions, a crash of processes none.
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")


def _write(db: sqlite3.Connection, batch: EntryBatch) -> int:
    if batch.sequence != UNCOUNTED:
        claimed = db.execute(
            "INSERT INTO ledger_writers (writer, sequence) VALUES (?1, ?2) "
            "ON CONFLICT (writer) DO UPDATE SET sequence = excluded.sequence "
            "WHERE ledger_writers.sequence < excluded.sequence",
            (batch.writer, batch.sequence),
        )
        if claimed.rowcount == 0:
            return 0
    new = book_entries(db, batch.entries)
    for hold, key_id, released in batch.releases:
        held = db.execute(
            "SELECT held_nanousd FROM ledger_holds WHERE hold = ? AND key_id = ?", (hold, key_id)
        ).fetchone()
        if held is not None:
            taken = min(held[0], released)
            _hold(db, key_id, hold, -taken)
            _change_held(db, key_id, -taken)
            db.execute(
                "DELETE FROM ledger_holds WHERE hold = ? AND key_id = ? AND held_nanousd = 0",
                (hold, key_id),
            )
    db.executemany(
        f"UPDATE ledger_holds SET ends_at_s = {_NOW} + hold_s, noticed = 0 "  # noqa: S608 - constant
        "WHERE hold = ? AND key_id = ?",
        batch.renewals,
    )
    return new


def book_entries(db: sqlite3.Connection, entries: Sequence[LedgerEntry]) -> int:
    """Insert what is new of `entries`, and add its cost to what its keys have spent; how many were new."""
    costs: dict[str, int] = defaultdict(int)
    new = 0
    for entry in entries:
        if db.execute(f"INSERT OR IGNORE {_INSERT}", msgspec.structs.astuple(entry)).rowcount:
            new += 1
            costs[entry.key_id] += entry.cost_nanousd
    db.executemany(
        "UPDATE ledger_budgets SET spent_nanousd = spent_nanousd + ?2 WHERE key_id = ?1",
        costs.items(),
    )
    return new


def _reserve(
    db: sqlite3.Connection, key_id: str, hold: str, need: int, want: int, hold_s: float
) -> Grant:
    def remaining() -> int | None:
        row = db.execute(
            "SELECT limit_nanousd - spent_nanousd - held_nanousd FROM ledger_budgets "
            "WHERE key_id = ?",
            (key_id,),
        ).fetchone()
        return None if row is None else row[0]

    left = remaining()
    if left is None:
        return Grant(0, budgeted=False)
    if left < need:
        ended = db.execute(
            f"DELETE FROM ledger_holds WHERE key_id = ? AND ends_at_s <= {_NOW} AND noticed "  # noqa: S608 - constant
            "RETURNING held_nanousd",
            (key_id,),
        ).fetchall()
        db.execute(
            f"UPDATE ledger_holds SET noticed = 1, ends_at_s = {_NOW} + hold_s / {NOTICE_PART} "  # noqa: S608 - constants
            f"WHERE key_id = ? AND ends_at_s <= {_NOW} AND NOT noticed",
            (key_id,),
        )
        _change_held(db, key_id, -sum(held for (held,) in ended))
        left = remaining()
        assert left is not None
    granted = granted_nanousd(left, need, want)
    if granted:
        _change_held(db, key_id, granted)
        db.execute(
            "INSERT INTO ledger_holds (hold, key_id, held_nanousd, hold_s, ends_at_s) "
            "VALUES (?1, ?2, 0, ?3, (julianday('now') - 2440587.5) * 86400.0 + ?3) "
            "ON CONFLICT (key_id, hold) DO UPDATE SET "
            "hold_s = excluded.hold_s, ends_at_s = excluded.ends_at_s, noticed = 0",
            (hold, key_id, hold_s),
        )
        _hold(db, key_id, hold, granted)
    return Grant(granted)


def _hold(db: sqlite3.Connection, key_id: str, hold: str, more: int) -> None:
    db.execute(
        "UPDATE ledger_holds SET held_nanousd = held_nanousd + ? WHERE hold = ? AND key_id = ?",
        (more, hold, key_id),
    )


def _change_held(db: sqlite3.Connection, key_id: str, more: int) -> None:
    db.execute(
        "UPDATE ledger_budgets SET held_nanousd = held_nanousd + ? WHERE key_id = ?",
        (more, key_id),
    )
