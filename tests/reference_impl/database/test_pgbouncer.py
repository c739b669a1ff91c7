"""Behind pgbouncer: what goes wrong without the setting for it, and what pgbouncer says in the server's place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from reference_impl.database.errors import DatabaseRefused, DatabaseUnavailable
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.postgres_store import PostgresLedger
from tests.reference_impl.database.rows import CENT, batch, entry
from tests.servers.pgbouncer import PgbouncerProcess, require_pgbouncer, shared_pgbouncer
from tests.servers.postgres import PASSWORD, PostgresProcess, fresh_database


async def crowd(ledger: PostgresLedger) -> list[object]:
    """Reservations and batches at once, over more connections than pgbouncer has; what became of them."""
    work: list[Awaitable[object]] = []
    for n in range(20):
        work.append(ledger.reserve("k", "h", CENT, CENT, 60))
        work.append(ledger.write(batch(1, [entry(n)], writer=f"writer-{n}")))
    return await asyncio.gather(*work, return_exceptions=True)


def test_without_the_setting_prepared_statements_get_lost_and_the_error_names_the_setting() -> None:
    bounced = shared_pgbouncer().dsn(fresh_database().rpartition("/")[2])

    async def main() -> None:
        right = PostgresLedger(ConnectionPool(bounced, 4, 4, behind_pgbouncer=True))
        await right.open()
        await right.set_budget("k", 1000 * CENT)
        wrong = PostgresLedger(ConnectionPool(bounced, 4, 4))
        await wrong.pool.initialize()
        failed: list[BaseException] = []
        for _ in range(50):  # how connections are dealt out is pgbouncer's luck
            failed = [e for e in await crowd(wrong) if isinstance(e, BaseException)]
            if failed:
                break
        assert {type(e) for e in failed} == {DatabaseRefused}
        for error in failed:
            assert str(error).endswith("set deployment.database.behind_pgbouncer")
        await wrong.aclose()
        # With it, what was not written is written now, and what was is known.
        assert [e for e in await crowd(right) if isinstance(e, BaseException)] == []
        found = [e.entry_id async for page in right.entries() for e in page]
        assert sorted(found) == sorted(entry(n).entry_id for n in range(20))
        await right.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("wrong", ["password", "database"])
def test_what_pgbouncer_itself_refuses_is_told_apart_from_a_server_that_is_away(wrong: str) -> None:
    bouncer = shared_pgbouncer()
    name = fresh_database().rpartition("/")[2]
    dsn = bouncer.dsn(name, "wr0ng") if wrong == "password" else bouncer.dsn(f"{name}_absent")

    async def main() -> None:
        with pytest.raises(DatabaseRefused) as caught:
            await ConnectionPool(dsn, 1, 1, behind_pgbouncer=True).initialize()
        assert "\n" not in str(caught.value)
        assert PASSWORD not in str(caught.value)

    asyncio.run(main())


def test_a_server_that_is_away_behind_pgbouncer_is_away() -> None:
    require_pgbouncer()

    async def main(bouncer: PgbouncerProcess) -> None:
        pool = ConnectionPool(
            bouncer.dsn("postgres"), 1, 1, behind_pgbouncer=True, connect_timeout_s=1
        )
        with pytest.raises(DatabaseUnavailable):
            await pool.initialize()

    server = PostgresProcess()  # never started
    try:
        with PgbouncerProcess(server) as bouncer:
            asyncio.run(main(bouncer))
    finally:
        server.close()
