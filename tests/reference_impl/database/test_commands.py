"""`twinload ledger` over real databases."""

from __future__ import annotations

import asyncio
import json

from click.testing import CliRunner

from reference_impl.database.commands import ledger
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.postgres_store import PostgresLedger
from tests.reference_impl.database.rows import batch, entry
from tests.servers.postgres import fresh_database


def test_the_ledger_command_shows_spend_and_exports(tmp_path: object) -> None:
    dsn = fresh_database()

    async def fill() -> None:
        store = PostgresLedger(ConnectionPool(dsn, 1, 1))
        await store.open()
        await store.write(batch(1, [entry(n, f"key-{n % 2}") for n in range(10)]))
        await store.aclose()

    asyncio.run(fill())
    runner = CliRunner()
    shown = runner.invoke(ledger, ["--json"], env={"TWINLOAD_DATABASE": dsn})
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.output)
    assert [(row["group"], row["cost_usd"]) for row in document["rows"]] == [
        ("key-0", 0.05),
        ("key-1", 0.05),
    ]
    exported = runner.invoke(
        ledger, ["--by", "day", "--export", f"{tmp_path}/l.parquet"], env={"TWINLOAD_DATABASE": dsn}
    )
    assert "10 rows written" in exported.output
    refused = runner.invoke(ledger, ["--database", "mysql://u:secret@h/d"])
    assert refused.exit_code == 1
    assert "secret" not in refused.output
    assert "expected postgresql://" in refused.output
