"""The stores that keep the suites of the ledger and of its batches: in memory and virtual on both loops, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from reference_impl.database.memory_store import MemoryLedger
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.port import LedgerStore
from reference_impl.database.postgres_store import PostgresLedger
from reference_impl.database.sqlite_store import SqliteLedger
from simulation import kernel
from simulation.models.database import DatabaseServer, VirtualLedger, VirtualPool
from tests.servers.pgbouncer import shared_pgbouncer
from tests.servers.postgres import fresh_database

__all__ = ["LEDGER_WORLDS", "LedgerWorld", "ledger_world"]

LEDGER_WORLDS = (
    "memory",
    "memory-virtual",
    "virtual",
    "virtual-live",
    "sqlite",
    "postgres",
    "pgbouncer",
)

Body = Callable[[LedgerStore, LedgerStore], Awaitable[None]]


class LedgerWorld(NamedTuple):
    """How to run a test, and how to make two connections to one ledger."""

    run: Callable[[Coroutine[Any, Any, None]], None]
    connect: Callable[[], tuple[LedgerStore, LedgerStore]]

    def play(self, body: Body) -> None:
        async def main() -> None:
            one, other = self.connect()
            await asyncio.gather(one.open(), other.open())
            try:
                await asyncio.wait_for(body(one, other), 60)
            finally:
                await one.aclose()
                await other.aclose()

        self.run(main())


def _memory() -> tuple[LedgerStore, LedgerStore]:
    store = MemoryLedger()
    return store, store


def _virtual() -> tuple[LedgerStore, LedgerStore]:
    server = DatabaseServer()
    return (
        VirtualLedger(server, VirtualPool(server, 3)),
        VirtualLedger(server, VirtualPool(server, 3)),
    )


def ledger_world(name: str, folder: Path) -> LedgerWorld:
    """The world of that name; files are in `folder`."""
    match name:
        case "postgres":
            dsn = fresh_database()
            return LedgerWorld(
                asyncio.run,
                lambda: (
                    PostgresLedger(ConnectionPool(dsn, 1, 5)),
                    PostgresLedger(ConnectionPool(dsn, 1, 5)),
                ),
            )
        case "pgbouncer":
            bounced = shared_pgbouncer().dsn(fresh_database().rpartition("/")[2])
            return LedgerWorld(
                asyncio.run,
                lambda: (
                    PostgresLedger(ConnectionPool(bounced, 1, 5, behind_pgbouncer=True)),
                    PostgresLedger(ConnectionPool(bounced, 1, 5, behind_pgbouncer=True)),
                ),
            )
        case "sqlite":
            path = folder / "ledger.sqlite"
            return LedgerWorld(asyncio.run, lambda: (SqliteLedger(path), SqliteLedger(path)))
        case "memory":
            return LedgerWorld(asyncio.run, _memory)
        case "memory-virtual":
            return LedgerWorld(kernel.run, _memory)
        case "virtual":
            return LedgerWorld(kernel.run, _virtual)
        case _:
            return LedgerWorld(asyncio.run, _virtual)
