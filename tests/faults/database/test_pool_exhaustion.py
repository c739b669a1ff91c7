"""A pool of 2 under a load that needs 6 connections: live and virtual show the same bottleneck, and both lose it at 8.

70 reservations/s, each of which keeps a connection for two round trips of 30 ms (the statement, and the reset with which
asyncpg takes a connection back), and the ledger's batches of eight round trips every half second: 4.2 + 0.5 connections by the
model. Live more are in use (9 to 10 of an ample pool, first statements included), and a pool of 8 still has short waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import pytest

from reference_impl.database.connect import build_accounting, store_of_dsn
from reference_impl.database.pool import PoolStatistics
from reference_impl.database.port import LedgerStore
from reference_impl.database.postgres_store import PostgresLedger
from reference_impl.deployment import DatabaseSpec
from reference_impl.live.loop import run_live
from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.telemetry import RequestTrace
from simulation import kernel
from simulation.models.database import DatabaseServer, VirtualLedger, VirtualPool
from simulation.scenario.database import DatabaseDemand
from simulation.scenario.distributions import Constant
from tests.faults.database.slow_link import slow_link
from tests.servers.postgres import fresh_database, shared_postgres

pytestmark = (
    pytest.mark.serial
)  # near its capacity a pool has no time to give away to a neighbour on the machine

RATE_PER_S = 70
SECONDS = 2.5
WARM_UP = 60  # requests: live, a connection's first statement is prepared
ONE_WAY_S = 0.015
ANSWER_S = 0.25


class Seen(NamedTuple):
    """Mean stages of a request, and what its pool says."""

    database_s: float
    llm_s: float
    pool: PoolStatistics

    @property
    def wait_s(self) -> float:
        return self.pool.wait_s / max(1, self.pool.acquired)


def spec(size: int) -> DatabaseSpec:
    return DatabaseSpec(
        ledger="postgres", min_size=size, max_size=size, budget_requests=1, budget_wait_s=10
    )


async def play(store: LedgerStore, size: int, statistics: Callable[[], PoolStatistics]) -> Seen:
    accounting = build_accounting(store, spec(size), source="g", wall_clock=lambda: 0.0)
    await accounting.start(dict.fromkeys((f"key-{n}" for n in range(10)), 1000.0))
    traces: list[RequestTrace] = []

    async def answer(_call: Call, _emit: Emit | None) -> Completion:
        await asyncio.sleep(ANSWER_S)
        return Completion(Usage(100, 10))

    async def ask(number: int) -> None:
        trace = RequestTrace()
        call = Call(
            request_id=number,
            model="claude-haiku-4-5",
            max_tokens=100,
            stream=False,
            trace=trace,
            tenant=f"key-{number % 10}",
        )
        await accounting.recorded(call, None, lambda c, e: accounting.forwarded(c, e, answer))
        if number >= WARM_UP:
            traces.append(trace)

    loop = asyncio.get_running_loop()
    started_s = loop.time()
    async with asyncio.TaskGroup() as group:
        for n in range(int(RATE_PER_S * SECONDS)):
            await asyncio.sleep(max(0.0, started_s + n / RATE_PER_S - loop.time()))
            group.create_task(ask(n))
    seen = Seen(sum(t.database_s for t in traces) / len(traces), ANSWER_S, statistics())
    await accounting.aclose()
    return seen


def virtual(size: int) -> Seen:
    async def main() -> Seen:
        demand = DatabaseDemand(one_way_s=Constant(value=ONE_WAY_S))
        server = DatabaseServer(demand)
        pool = VirtualPool(server, size, acquire_timeout_s=10)
        return await play(VirtualLedger(server, pool), size, pool.statistics)

    return kernel.run(main())


def live(size: int) -> Seen:
    dsn = fresh_database()

    async def main() -> Seen:
        async with slow_link(shared_postgres().port, ONE_WAY_S) as port:
            far = dsn.replace(f":{shared_postgres().port}/", f":{port}/")
            store = store_of_dsn(far, spec(size).model_copy(update={"acquire_timeout_s": 10.0}))
            assert isinstance(store, PostgresLedger)
            return await play(store, size, store.pool.statistics)

    return run_live(main())


@pytest.fixture(scope="module")
def seen() -> dict[str, tuple[Seen, Seen]]:
    """Each world with 2 and with 8 connections."""
    return {"virtual": (virtual(2), virtual(8)), "live": (live(2), live(8))}


@pytest.mark.parametrize("world", ["virtual", "live"])
def test_the_wait_for_a_connection_is_the_largest_stage_at_two_and_gone_at_eight(
    seen: dict[str, tuple[Seen, Seen]], world: str
) -> None:
    small, large = seen[world]
    assert small.database_s > 2 * small.llm_s, small
    assert small.wait_s > 0.5 * small.database_s, "it is the wait, not the statement"
    assert large.database_s < large.llm_s, large
    assert large.wait_s < 0.1 * small.wait_s, large


def test_both_worlds_agree_on_the_time_at_a_pool_that_is_too_small(
    seen: dict[str, tuple[Seen, Seen]],
) -> None:
    assert seen["virtual"][0].database_s == pytest.approx(seen["live"][0].database_s, rel=0.3)
