"""A gateway process starts before its PostgreSQL: requests are answered, kept in the spill file, and written when it comes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from loadtests.child_process import ChildProcess
from loadtests.stack import LOGS, Stack
from reference_impl.database.connect import DSN_VARIABLE, store_of_dsn
from reference_impl.database.entries import EntryBatch, KeyBudget, LedgerEntry, to_nanousd
from reference_impl.database.errors import DatabaseError
from reference_impl.live.loop import run_live
from reference_impl.live.services.server_process import free_port
from reference_impl.telemetry.run_log import read_samples
from tests.faults.database.gateway_load import RATE_PER_S, drive, ledger, scenario
from tests.servers.postgres import PostgresProcess, require_postgres

LIMIT_S = 30.0


async def complete_ledger(dsn: str, rows: int) -> list[LedgerEntry]:
    """The ledger once it has so many rows; whatever it has when the limit is over."""
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + LIMIT_S
    while True:
        try:
            found = await ledger(dsn)
        except DatabaseError:
            found = []
        if len(found) >= rows or loop.time() > give_up_s:
            return found
        await asyncio.sleep(0.1)


async def budgets(dsn: str) -> list[KeyBudget]:
    store = store_of_dsn(dsn)
    await store.open()
    try:
        return await store.budgets()
    finally:
        await store.aclose()


def test_a_gateway_that_is_earlier_than_its_database_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_postgres()
    run_dir = tmp_path / "run"
    server = PostgresProcess()
    dsn = server.dsn()
    monkeypatch.setenv(DSN_VARIABLE, dsn)
    try:
        with Stack(scenario(budgets_usd={"": 1000.0}), run_dir) as stack:
            answered = run_live(drive(stack.url, 2.5))
            assert len(answered) == 125, "nothing fails for it"
            (spill,) = run_dir.glob("gateway-*.spill")
            assert spill.stat().st_size > 0
            server.start()
            rows = run_live(complete_ledger(dsn, 125))
            assert sorted(int(r.entry_id.rpartition("/")[2]) for r in rows) == sorted(answered)
            (budget,) = run_live(budgets(dsn))
            assert budget.limit_nanousd == to_nanousd(1000.0)
            spent = sum(r.cost_nanousd for r in rows)
            assert budget.spent_nanousd == spent > 0, "what went before it was set is counted"
            run_live(drive(stack.url, 0.5, 1000))
            assert len(run_live(complete_ledger(dsn, 150))) == 150
        assert not list(run_dir.glob("*.spill"))
    finally:
        server.close()


def test_a_gateway_that_ends_before_its_database_comes_ends_well_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DSN_VARIABLE, f"postgresql://u:hidden@127.0.0.1:{free_port()}/ledger")
    with Stack(scenario(), tmp_path) as stack:
        assert len(run_live(drive(stack.url, 1 / RATE_PER_S))) == 1
        run_live(asyncio.sleep(2.5 * scenario().sample_interval_s))
        gateway = stack._children[-1]
        assert isinstance(gateway, ChildProcess)
        gateway.stop(20.0)
        assert gateway.exit_status() == 0
    told = (tmp_path / LOGS / "gateway.err").read_text()
    assert "the database has not taken the last rows" in told
    assert "Traceback" not in told
    assert "hidden" not in told
    (spill,) = tmp_path.glob("gateway-*.spill")
    batches = [
        msgspec.json.decode(line, type=EntryBatch) for line in spill.read_bytes().splitlines()
    ]
    assert [entry.outcome for batch in batches for entry in batch.entries] == ["ok"]
    stations = [sample.station for sample in read_samples(tmp_path / "stations-gateway.jsonl")]
    assert stations.count("gateway cpu") >= 3, "it was sampled meanwhile, and at its end"
