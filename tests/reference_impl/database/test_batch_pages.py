"""What batches cost to look at: only those that are shown are counted, and in the index alone."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import msgspec

from reference_impl.batches.port import Batch, BatchRequest
from reference_impl.database.batch_pages import side_of
from reference_impl.database.sqlite_store import SqliteLedger


def test_a_side_is_that_of_the_cursor() -> None:
    assert side_of(None, None) == ("newest", None)
    assert side_of("a", None) == ("after", "a")
    assert side_of(None, "b") == ("before", "b")
    assert side_of("a", "b") == ("after", "a")


def test_batches_are_counted_in_an_index_and_found_in_another(tmp_path: Path) -> None:
    async def main() -> None:
        ledger = SqliteLedger(tmp_path / "ledger.sqlite")
        await ledger.open()
        store = ledger.batches()
        for name in "ab":
            batch = Batch(name, "k", 0.0, 1.0, processing=1)
            await store.create(batch, [BatchRequest("c", msgspec.Raw(b"{}"))])
        asked: list[str] = []
        await ledger.transaction(lambda db: db.set_trace_callback(asked.append))
        await store.get("a")
        await store.of_tenant("k", 1)
        await store.of_tenant("k", 1, after_id="b")
        await ledger.transaction(lambda db: db.set_trace_callback(None))
        looks = [sql for sql in asked if "sum(kind" in sql]
        assert len(looks) == 3

        def plans(db: sqlite3.Connection) -> list[str]:
            return [
                "\n".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}"))
                for sql in looks
            ]

        get, newest, after = await ledger.transaction(plans)
        for plan in (get, newest, after):
            assert "COVERING INDEX ledger_batch_requests_by_kind (batch_id=?)" in plan
        assert "INDEX ledger_batches_of_tenant (tenant=?)" in newest
        assert "INDEX ledger_batches_of_tenant (tenant=? AND created_s<?)" in after
        await ledger.aclose()

    asyncio.run(main())
