"""A gateway process is killed: the ledger lacks at most one flush interval, and the spill file gives back the rest."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from loadtests.stack import Stack
from reference_impl.database.connect import DSN_VARIABLE
from reference_impl.live.loop import run_live
from tests.faults.database.gateway_load import FLUSH_S, drive, ledger, scenario
from tests.servers.postgres import PostgresProcess, require_postgres


@pytest.mark.parametrize("database_away", [False, True], ids=["database there", "database away"])
def test_a_killed_gateway_costs_at_most_one_interval_of_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_away: bool
) -> None:
    require_postgres()
    run_dir = tmp_path / "run"
    with PostgresProcess() as server:
        dsn = server.create_database("ledger")
        monkeypatch.setenv(DSN_VARIABLE, dsn)
        stack = Stack(scenario(), run_dir)
        with stack:

            async def load() -> tuple[dict[int, float], float]:
                loop = asyncio.get_running_loop()
                first = await drive(stack.url, 1.5)
                if database_away:
                    await asyncio.to_thread(server.kill)
                rest = asyncio.create_task(drive(stack.url, 4, 1000))
                await asyncio.sleep(3.2)
                os.kill(stack._children[-1].pid, signal.SIGKILL)
                killed_s = loop.time()
                return first | await rest, killed_s

            answered, killed_s = run_live(load())
        if database_away:
            spilled = list(run_dir.glob("gateway-*.spill"))
            assert [path.stat().st_size > 0 for path in spilled] == [True]
            server.start()
        # The next gateway in the same folder writes what the dead one had kept.
        with Stack(scenario(), run_dir) as successor:
            assert successor.url
            run_live(drive(successor.url, 0.1, 5000))
        rows = run_live(ledger(dsn))
        found = [row.entry_id.rpartition("/")[2] for row in rows]
        assert len(found) == len(set(found))
        old_enough = {n for n, at_s in answered.items() if at_s <= killed_s - FLUSH_S}
        assert len(old_enough) > 100
        missing = old_enough - {int(n) for n in found}
        assert missing == set(), "answered more than an interval before the kill"
        assert not list(run_dir.glob("*.spill"))
        assert {row.attempts for row in rows if row.outcome == "ok"} == {1}
        assert all(row.cost_nanousd > 0 for row in rows if row.outcome == "ok")
