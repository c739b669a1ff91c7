"""A SQLite ledger for who only looks: nothing is made, migrated or changed.

SQLite reads a file in WAL mode only with two files beside it, which a reader that may not write would leave behind, owned by
whoever looked. So a file that no gateway has open is read as one that does not change (`immutable`), and whether that held is
looked at after each query: if not, the query is asked again, beside the gateway.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

import aiosqlite

from reference_impl.database.errors import DatabaseError, DatabaseRefused, masked, one_line
from reference_impl.database.migrations import check_current, steps
from reference_impl.database.sqlite_store import SqliteLedger

__all__ = ["SqliteReader"]

_OPEN_ELSEWHERE: Final = ("-wal", "-journal")


class SqliteReader(SqliteLedger):
    """`LedgerReader` of the file at `path`."""

    # When and how large the file was when it was opened as unchanging; None: SQLite itself looks after writers.
    _unchanging: tuple[int, int] | None = None

    async def open(self) -> None:
        """Raises DatabaseRefused where there is no ledger of this version, SchemaTooNew; other DatabaseErrors."""
        if self._connection is not None:
            return
        try:
            await self._connect()
            ((version,),) = await self.query("PRAGMA user_version")
            tables = await self.query("SELECT 1 FROM sqlite_master WHERE name = 'ledger_entries'")
            if not tables:
                raise DatabaseRefused(f"{self._path} holds no ledger: name another file")
            check_current(version, len(steps("sqlite")))
        except BaseException:
            await self.aclose()
            raise

    async def query(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        while True:
            try:
                rows = await super().query(sql, *args)
            except DatabaseError:
                if not self._changed():
                    raise
            else:
                if not self._changed():
                    return rows
            await self.aclose()
            await self._connect()

    async def _connect(self) -> None:
        self._unchanging = self._state()
        how = "mode=ro" if self._unchanging is None else "mode=ro&immutable=1"
        try:
            self._connection = await aiosqlite.connect(
                f"{self._path.resolve().as_uri()}?{how}",
                uri=True,
                timeout=self._busy_timeout_s,
                isolation_level=None,
            )
        except sqlite3.Error as error:
            raise DatabaseRefused(f"ledger {self._path}: {one_line(error)}") from error

    def _changed(self) -> bool:
        return self._unchanging is not None and self._state() != self._unchanging

    def _state(self) -> tuple[int, int] | None:
        """When the file was changed, and its size; None: it is open somewhere. Raises DatabaseRefused."""
        try:
            if not self._path.is_file():
                raise DatabaseRefused(f"no ledger: {masked(str(self._path))} is no file")
            if any(self._path.with_name(self._path.name + end).exists() for end in _OPEN_ELSEWHERE):
                return None
            status = self._path.stat()
        except OSError as error:
            raise DatabaseRefused(f"ledger {self._path}: {one_line(error)}") from error
        return status.st_mtime_ns, status.st_size
