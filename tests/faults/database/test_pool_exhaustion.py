"""A pool of 2 under a load that needs 6 connections: live and virtual show the same bottleneck, and both lose it at 8.

The need, by what the virtual database's figures say (and `test_round_trips.py` counts on the wire): a reservation keeps a
connection for one round trip, 120 ms of way and 0.4 ms on the server; a batch of the ledger, one every second, for four, 480 ms
and 2.3 ms. 45.8/s * 0.1204 s + 1/s * 0.4823 s = 5.52 + 0.48 = 6.0 connections (Little's law).

At 8 that is a load of 0.75, and arrivals are even: next to nothing waits. A pool of 2 serves (2 - 0.48) / 0.1204 = 13
reservations/s, so that of the 229 which are asked for in five seconds the mean waits for several. The link is that slow because
what a busy machine adds to a round trip, some milliseconds, must be small beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import pytest

from reference_impl.database.connect import build_accounting, store_of_dsn
from reference_impl.database.entries import to_nanousd
from reference_impl.database.pool import PoolStatistics
from reference_impl.database.port import LedgerStore
from reference_impl.database.postgres_store import PostgresLedger
from reference_impl.deployment import DatabaseSpec
from reference_impl.live.loop import run_live
from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.telemetry import RequestTrace
from simulation import kernel
from simulation.models.database import (
    ROUND_TRIPS,
    DatabaseServer,
    Statement,
    VirtualLedger,
    VirtualPool,
)
from simulation.scenario.database import DatabaseDemand
from simulation.scenario.distributions import Constant
from tests.faults.database.slow_link import slow_link
from tests.servers.postgres import fresh_database, shared_postgres

pytestmark = (
    pytest.mark.serial
)  # near its capacity a pool has no time to give away to a neighbour on the machine

RATE_PER_S = 45.8
SECONDS = 5.0
WARM_UP = 50  # requests: live, a connection's first statement is prepared
ONE_WAY_S = 0.06
ANSWER_S = 0.25
LIMITS = dict.fromkeys((f"key-{n}" for n in range(10)), 1000.0)
DEMAND = DatabaseDemand(one_way_s=Constant(value=ONE_WAY_S))
AMPLE = 20


class Seen(NamedTuple):
    """Mean stages of a request, and what its pool says."""

    database_s: float
    llm_s: float
    in_use: float  # connections, on average while requests arrive
    pool: PoolStatistics

    @property
    def wait_s(self) -> float:
        return self.pool.wait_s / max(1, self.pool.acquired)


def spec(size: int) -> DatabaseSpec:
    return DatabaseSpec(
        ledger="postgres",
        min_size=size,
        max_size=size,
        flush_s=2.0,  # a batch every second
        budget_requests=1,
        budget_wait_s=30,
        acquire_timeout_s=30,
    )


async def play(store: LedgerStore, size: int, statistics: Callable[[], PoolStatistics]) -> Seen:
    accounting = build_accounting(store, spec(size), source="g", wall_clock=lambda: 0.0)
    await accounting.start({})
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
            if n == WARM_UP:
                store.samples()
        (sample,) = store.samples()  # since the warm-up
    seen = Seen(
        sum(t.database_s for t in traces) / len(traces),
        ANSWER_S,
        sample.busy_s / sample.interval_s,
        statistics(),
    )
    await accounting.aclose()
    return seen


def virtual(size: int) -> Seen:
    async def main() -> Seen:
        server = DatabaseServer(DEMAND)
        for key_id, limit_usd in LIMITS.items():
            await server.ledger.set_budget(key_id, to_nanousd(limit_usd))
        pool = VirtualPool(server, size, min_size=size, acquire_timeout_s=30)
        return await play(VirtualLedger(server, pool), size, pool.statistics)

    return kernel.run(main())


def live(size: int) -> Seen:
    dsn = fresh_database()

    async def main() -> Seen:
        near = store_of_dsn(dsn)
        await near.open()
        for key_id, limit_usd in LIMITS.items():
            await near.set_budget(key_id, to_nanousd(limit_usd))
        await near.aclose()
        async with slow_link(shared_postgres().port, ONE_WAY_S) as port:
            far = dsn.replace(f":{shared_postgres().port}/", f":{port}/")
            store = store_of_dsn(far, spec(size))
            assert isinstance(store, PostgresLedger)
            return await play(store, size, store.pool.statistics)

    return run_live(main())


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[int, Seen]]:
    """Each world with 2, with 8 and with more connections than it needs."""
    return {
        "virtual": {size: virtual(size) for size in (2, 8, AMPLE)},
        "live": {size: live(size) for size in (2, 8, AMPLE)},
    }


def held_s(kind: Statement, rows: float = 0.0) -> float:
    """How long a connection that has done this before is kept for it, by the model."""
    alone_s: float = getattr(DEMAND, f"{kind}_s").quantile(0.5) + rows * DEMAND.write_per_row_s
    return alone_s + 2 * ONE_WAY_S * ROUND_TRIPS[kind].prepared


def test_the_load_needs_six_connections_by_the_model_and_in_both_worlds(
    seen: dict[str, dict[int, Seen]],
) -> None:
    batches_per_s = 2 / spec(AMPLE).flush_s
    need = RATE_PER_S * held_s("reserve")
    need += batches_per_s * held_s("write", RATE_PER_S / batches_per_s)
    assert need == pytest.approx(6.0, abs=0.05)
    # A little more than the need: new connections prepare their statements.
    assert seen["virtual"][AMPLE].in_use == pytest.approx(need, rel=0.1)
    # Live, a message may be late by 24 ms of its 120 on a busy machine. A round trip of a reservation that the model misses, or a
    # wait for a writer's locks over one, would double what is in use.
    assert seen["live"][AMPLE].in_use == pytest.approx(seen["virtual"][AMPLE].in_use, rel=0.2)


@pytest.mark.parametrize("world", ["virtual", "live"])
def test_the_wait_for_a_connection_is_the_largest_stage_at_two_and_gone_at_eight(
    seen: dict[str, dict[int, Seen]], world: str
) -> None:
    small, large = seen[world][2], seen[world][8]
    assert small.database_s > 2 * small.llm_s, small
    assert small.wait_s > 0.5 * small.database_s, "it is the wait, not the statement"
    assert large.database_s < large.llm_s, large
    assert large.wait_s < 0.1 * small.wait_s, large
    assert large.wait_s < 0.2 * large.database_s, "what is left is the statement, not the wait"


def test_both_worlds_agree_on_the_time_at_a_pool_that_is_too_small(
    seen: dict[str, dict[int, Seen]],
) -> None:
    assert seen["virtual"][2].database_s == pytest.approx(seen["live"][2].database_s, rel=0.3)
