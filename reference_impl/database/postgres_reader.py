"""A PostgreSQL ledger for who only looks: the schema is looked at, not migrated."""

from __future__ import annotations

from reference_impl.database.errors import DatabaseRefused
from reference_impl.database.migrations import check_current, postgres_version, steps
from reference_impl.database.postgres_errors import FOREIGN, translated
from reference_impl.database.postgres_store import PostgresLedger

__all__ = ["PostgresReader"]


class PostgresReader(PostgresLedger):
    """`LedgerReader` over a pool, which belongs to it."""

    async def open(self) -> None:
        """Raises DatabaseRefused where there is no ledger of this version, SchemaTooNew; other DatabaseErrors."""
        await self.pool.initialize()
        async with self.pool.acquire(stateless=True) as connection:
            try:
                version = await postgres_version(connection)
            except FOREIGN as error:
                raise translated(error, "looking for the ledger") from error
        if version is None:
            raise DatabaseRefused(
                "no ledger in this database, or none that this user may see: name another database or user"
            )
        check_current(version, len(steps("postgres")))
