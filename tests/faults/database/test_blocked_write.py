"""Somebody locks the ledger's table for longer than a statement may take: requests go on, and each row is written once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from reference_impl.database.connect import store_of_dsn
from reference_impl.database.writer import LedgerWriter
from reference_impl.deployment import DatabaseSpec
from reference_impl.telemetry import SystemEvent
from tests.reference_impl.database.rows import entry
from tests.servers.postgres import fresh_database


def test_a_batch_that_exceeds_its_time_is_written_once_when_the_lock_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dsn = fresh_database()
    events: list[SystemEvent] = []

    async def main() -> None:
        spec = DatabaseSpec(ledger="postgres", statement_timeout_s=0.2, flush_s=0.2, max_size=2)
        store = store_of_dsn(dsn, spec)
        await store.open()
        went_away = asyncio.Event()

        def on_event(event: SystemEvent) -> None:
            events.append(event)
            went_away.set()

        writer = LedgerWriter(store, spec, name="w", folder=tmp_path, on_event=on_event)
        writer.start()
        other = await asyncpg.connect(dsn)
        async with asyncio.timeout(30):
            async with other.transaction():
                await other.execute("LOCK TABLE ledger_entries")
                for number in range(50):
                    writer.add(entry(number))
                await went_away.wait()
            await writer.drained()
        await other.close()
        found = [e.entry_id async for page in store.entries() for e in page]
        assert found == [entry(n).entry_id for n in range(50)]
        await writer.aclose()
        await store.aclose()

    asyncio.run(main())
    assert [event.detail["state"] for event in events] == ["away", "back"]
    (told, _back) = [r.message for r in caplog.records if r.name == "twinload.ledger"]
    assert told == (
        "ledger: the database is away, rows are kept: "
        "writing a batch: no answer within the time allowed"
    )
    assert list(tmp_path.iterdir()) == []
