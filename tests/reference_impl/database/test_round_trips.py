"""How often the ledger waits for the way to the database and back, counted on the wire; the virtual database's figures are held here.

While it waits it keeps a connection, so over a slow link these counts are what a pool's size depends on.
"""

from __future__ import annotations

import asyncio

from reference_impl.database.pool import ConnectionPool
from reference_impl.database.postgres_store import PostgresLedger
from simulation.models.database import ROUND_TRIPS
from tests.faults.database.slow_link import slow_link
from tests.reference_impl.database.rows import CENT, batch, entry
from tests.servers.postgres import fresh_database, shared_postgres

# After these messages a client waits for what the server says: a simple query, Sync, Flush (PostgreSQL manual, 54.7).
WAITED_FOR = b"QSH"


def waits(sent: bytes) -> int:
    """Round trips in what one client sent after it was let in; `sent` begins at a message."""
    found = at = 0
    while at + 5 <= len(sent):
        found += sent[at] in WAITED_FOR
        at += 1 + int.from_bytes(sent[at + 1 : at + 5], "big")
    assert at == len(sent), "whole messages"
    return found


async def counted(*, behind_pgbouncer: bool) -> dict[str, list[int]]:
    """Round trips of the first and the second use of each kind of statement."""
    dsn = fresh_database()
    setup = PostgresLedger(ConnectionPool(dsn, 1, 1))
    await setup.open()
    await setup.set_budget("k", 100 * CENT)
    await setup.aclose()
    sent: list[bytearray] = []
    server = shared_postgres().port
    async with slow_link(server, 0.0, sent) as port:
        pool = ConnectionPool(
            dsn.replace(f":{server}/", f":{port}/"), 1, 1, behind_pgbouncer=behind_pgbouncer
        )
        ledger = PostgresLedger(pool)
        await ledger.open()
        (connection,) = sent
        seen = len(connection)

        def since_last() -> int:
            nonlocal seen
            start, seen = seen, len(connection)
            return waits(bytes(connection[start:seen]))

        found: dict[str, list[int]] = {"reserve": [], "write": [], "query": []}
        for turn in (1, 2):
            await ledger.reserve("k", "h", CENT, CENT, 60)
            found["reserve"].append(since_last())
            rows = [entry(turn * 10 + n) for n in range(5)]
            releases = [("h", "k", CENT // 2)]
            assert await ledger.write(batch(turn, rows, releases=releases)) == 5
            found["write"].append(since_last())
            await ledger.budgets()
            found["query"].append(since_last())
        await ledger.aclose()
    return found


def test_a_statement_takes_as_many_round_trips_as_the_virtual_database_says() -> None:
    found = asyncio.run(counted(behind_pgbouncer=False))
    assert found == {kind: [trips.first, trips.prepared] for kind, trips in ROUND_TRIPS.items()}


def test_behind_pgbouncer_nothing_stays_prepared_and_the_virtual_database_knows() -> None:
    found = asyncio.run(counted(behind_pgbouncer=True))
    assert found == {kind: [trips.behind_pgbouncer] * 2 for kind, trips in ROUND_TRIPS.items()}


def test_a_key_that_is_spent_costs_one_round_trip_while_no_hold_has_ended() -> None:
    async def main() -> None:
        dsn = fresh_database()
        ledger = PostgresLedger(ConnectionPool(dsn, 1, 1))
        await ledger.open()
        await ledger.set_budget("k", CENT)
        before = ledger.pool.statistics().acquired
        grants = [(await ledger.reserve("k", "h", CENT, 0, 60)).nanousd for _ in range(4)]
        assert grants == [CENT, 0, 0, 0]
        assert ledger.pool.statistics().acquired - before == 4
        await ledger.aclose()

    asyncio.run(main())
