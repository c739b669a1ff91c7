"""The ledger in PostgreSQL, where it differs from the others: its transaction is begun and ended by statements of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from reference_impl.database.entries import KeyBudget
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.postgres_store import PostgresLedger
from reference_impl.database.writer import LedgerWriter
from reference_impl.deployment import DatabaseSpec
from tests.faults.database.slow_link import slow_link
from tests.reference_impl.database.rows import CENT, batch, entry
from tests.servers.postgres import fresh_database, shared_postgres

ONE_WAY_S = 0.004


def test_a_write_that_is_cancelled_anywhere_is_whole_or_not_at_all_and_leaves_no_transaction() -> (
    None
):
    dsn = fresh_database()
    server = shared_postgres().port
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: complaints.append(context))
        async with slow_link(server, ONE_WAY_S) as port:
            far = ConnectionPool(dsn.replace(f":{server}/", f":{port}/"), 1, 1)
            ledger = PostgresLedger(far)
            await ledger.open()
            await ledger.set_budget("k", 1000 * CENT)
            await ledger.write(batch(1, [entry(0)]))
            for turn in range(2, 16):  # a write takes four round trips of 8 ms
                one = batch(1, [entry(turn)], writer=f"writer-{turn}")
                task = asyncio.create_task(ledger.write(one))
                await asyncio.sleep(turn * ONE_WAY_S * 0.7)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            written = {e.entry_id async for page in ledger.entries() for e in page}
            assert 1 < len(written) < 15, "some were cancelled in time and some were not"
            assert await ledger.budgets() == [KeyBudget("k", 1000 * CENT, len(written) * CENT, 0)]
            for turn in range(2, 16):  # as the writer does: what was not confirmed is written again
                await ledger.write(batch(1, [entry(turn)], writer=f"writer-{turn}"))
            assert await ledger.budgets() == [KeyBudget("k", 1000 * CENT, 15 * CENT, 0)]
            await ledger.aclose()

    asyncio.run(main())
    assert complaints == []


def test_a_table_that_is_gone_for_a_while_costs_no_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        ledger = PostgresLedger(ConnectionPool(fresh_database(), 1, 2))
        await ledger.open()
        writer = LedgerWriter(ledger, DatabaseSpec(flush_s=0.1), name="w", folder=tmp_path)
        writer.start()
        execute = ledger.pool.execute
        await execute("ALTER TABLE ledger_entries RENAME TO elsewhere")
        for n in range(50):
            writer.add(entry(n, "bad" if n == 7 else "k"))
        async with asyncio.timeout(10):
            while not writer.statistics().away:
                await asyncio.sleep(0.01)
        await execute("ALTER TABLE elsewhere RENAME TO ledger_entries")
        await execute("ALTER TABLE ledger_entries ADD CHECK (key_id <> 'bad')")
        await writer.drained()
        statistics = writer.statistics()
        assert (statistics.written, statistics.refused, statistics.known) == (49, 1, 0)
        assert await ledger.pool.fetch("SELECT writer FROM ledger_writers") == [("w",)]
        await writer.aclose()
        await ledger.aclose()

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["w.refused"]
    told = [r.message for r in caplog.records if "rows are kept" in r.message]
    assert len(told) == 1
    assert "ledger_entries" in told[0]
