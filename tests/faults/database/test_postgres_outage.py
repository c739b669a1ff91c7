"""PostgreSQL goes away under load: no request fails for it, and the ledger is complete to the row afterwards.

In one process, the gateway's own accounting over a real server; `test_gateway_killed.py` has the processes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from reference_impl.database.accounting import Accounting
from reference_impl.database.connect import build_accounting, store_of_dsn
from reference_impl.deployment import DatabaseSpec
from reference_impl.live.loop import run_live
from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.telemetry import RequestTrace
from tests.servers.postgres import PostgresProcess, require_postgres

RATE_PER_S = 200


async def answer(_call: Call, _emit: Emit | None) -> Completion:
    await asyncio.sleep(0.02)
    return Completion(Usage(1000, 100))


async def ask(accounting: Accounting, number: int) -> str:
    call = Call(
        request_id=number,
        model="claude-haiku-4-5",
        max_tokens=1000,
        stream=False,
        trace=RequestTrace(),
        tenant=f"key-{number % 5}",
        input_tokens=1000,
    )

    async def complete(asked: Call, emit: Emit | None) -> Completion:
        return await accounting.forwarded(asked, emit, answer)

    try:
        await accounting.recorded(call, None, complete)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
        return repr(error)
    return "ok"


async def drive(accounting: Accounting, first: int, seconds: float) -> Counter[str]:
    """`RATE_PER_S` requests, whatever becomes of them."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    tasks = []
    for n in range(int(seconds * RATE_PER_S)):
        await asyncio.sleep(started_s + n / RATE_PER_S - loop.time())
        tasks.append(asyncio.create_task(ask(accounting, first + n)))
    return Counter(await asyncio.gather(*tasks))


@pytest.mark.parametrize(
    ("how", "away_s"),
    [
        pytest.param("stop", 0.0, id="restarted"),
        pytest.param("kill", 2.0, id="crashed for 2 s"),
        pytest.param("pause", 2.0, id="hung for 2 s"),
        pytest.param("kill", 30.0, id="away for 30 s", marks=pytest.mark.soak),
    ],
)
def test_no_request_fails_and_no_row_is_missing_or_double(
    how: str, away_s: float, tmp_path: Path
) -> None:
    require_postgres()

    async def main(server: PostgresProcess) -> None:
        dsn = await asyncio.to_thread(server.create_database, "ledger")
        spec = DatabaseSpec(
            ledger="postgres",
            min_size=2,
            max_size=8,
            flush_s=0.5,
            acquire_timeout_s=1,
            statement_timeout_s=1,
            budget_wait_s=0.25,
        )
        accounting = build_accounting(
            store_of_dsn(dsn, spec), spec, source="g", wall_clock=lambda: 0.0, folder=tmp_path
        )
        await accounting.start(dict.fromkeys((f"key-{n}" for n in range(5)), 1000.0))
        try:
            await outage(server, accounting)
        finally:
            await accounting.aclose()
        assert list(tmp_path.iterdir()) == []

    async def outage(server: PostgresProcess, accounting: Accounting) -> None:
        outcomes = await drive(accounting, 0, 1)
        load = asyncio.create_task(drive(accounting, RATE_PER_S, away_s + 2))
        await asyncio.sleep(0.5)
        go: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "stop": (server.stop, server.start),
            "kill": (server.kill, server.start),
            "pause": (server.pause, server.resume),
        }
        leave, come_back = go[how]
        await asyncio.to_thread(leave)
        await asyncio.sleep(away_s)
        await asyncio.to_thread(come_back)
        outcomes += await load
        async with asyncio.timeout(30):
            await accounting.writer.drained()
        sent = int((away_s + 3) * RATE_PER_S)
        assert outcomes == {"ok": sent}
        found = [e.entry_id async for page in accounting.store.entries() for e in page]
        assert sorted(int(entry_id.rpartition("/")[2]) for entry_id in found) == list(range(sent))
        cost = {e.cost_nanousd async for page in accounting.store.entries() for e in page}
        assert len(cost) == 1
        for budget in await accounting.store.budgets():
            assert budget.spent_nanousd == sent // 5 * next(iter(cost)), "spent once for each row"

    with PostgresProcess() as server:
        run_live(main(server))
