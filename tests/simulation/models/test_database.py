"""The virtual database: demand, concurrency, outage and failover; and a whole world over it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from reference_impl.database.errors import DatabaseUnavailable, PoolExhausted
from simulation import kernel
from simulation.models.database import DatabaseServer, VirtualLedger, VirtualPool
from simulation.scenario.database import DatabaseDemand
from simulation.scenario.distributions import Constant
from simulation.scenario.errors import ScenarioError
from tests.simulation.runs import play

PLAIN = DatabaseDemand(
    one_way_s=Constant(value=0), query_s=Constant(value=1.0), connect_s=0, contention=0
)


def test_statements_beyond_the_pool_wait_their_turn() -> None:
    async def main() -> None:
        server = DatabaseServer(PLAIN)
        pool = VirtualPool(server, 2)
        ledger = VirtualLedger(server, pool)
        await asyncio.gather(*(ledger.budgets() for _ in range(6)))
        assert asyncio.get_running_loop().time() == pytest.approx(3.0)
        seen = pool.statistics()
        assert (seen.size, seen.idle, seen.waiting, seen.acquired) == (2, 2, 0, 6)
        assert seen.wait_s == pytest.approx(2 * 1.0 + 2 * 2.0)

    kernel.run(main())


@pytest.mark.parametrize(
    ("behind_pgbouncer", "expected_s"),
    [(False, [10.0, 4.0, 2.0, 2.0]), (True, [10.0, 8.0, 8.0, 8.0])],
)
def test_a_connection_costs_round_trips_to_open_and_more_at_its_first_use(
    behind_pgbouncer: bool, expected_s: list[float]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = DatabaseServer(
            DatabaseDemand(
                one_way_s=Constant(value=1.0), query_s=Constant(value=0), connect_s=0, contention=0
            )
        )
        pool = VirtualPool(
            server, 2, min_size=1, behind_pgbouncer=behind_pgbouncer, connect_timeout_s=60
        )
        ledger = VirtualLedger(server, pool)
        took_s = []
        for step in (ledger.open, *(ledger.budgets,) * 3):
            began_s = loop.time()
            await step()
            took_s.append(loop.time() - began_s)
        assert took_s == pytest.approx(expected_s)
        assert pool.statistics().size == 1

    kernel.run(main())


def test_a_statement_takes_longer_beside_others() -> None:
    async def main() -> None:
        server = DatabaseServer(PLAIN.model_copy(update={"contention": 0.5}))
        ledger = VirtualLedger(server, VirtualPool(server, 3))
        await asyncio.gather(*(ledger.budgets() for _ in range(3)))
        assert asyncio.get_running_loop().time() == pytest.approx(1 + 0.5 * 2)

    kernel.run(main())
    assert DatabaseDemand(contention=0.1, coherence=0.01).slowdown(10) == pytest.approx(2.8)


def test_a_wait_for_a_connection_has_its_limit() -> None:
    async def main() -> None:
        server = DatabaseServer(PLAIN)
        pool = VirtualPool(server, 1, acquire_timeout_s=0.5)
        ledger = VirtualLedger(server, pool)
        first = asyncio.create_task(ledger.budgets())
        await asyncio.sleep(0)
        with pytest.raises(PoolExhausted):
            await ledger.budgets()
        await first
        assert (pool.statistics().gave_up, pool.statistics().idle) == (1, 1)

    kernel.run(main())


def test_a_failover_breaks_what_is_under_way_and_keeps_the_data() -> None:
    async def main() -> None:
        server = DatabaseServer(PLAIN)
        ledger = VirtualLedger(server, VirtualPool(server, 4))
        await ledger.set_budget("k", 5)
        under_way = asyncio.create_task(ledger.set_budget("k", 6))
        await asyncio.sleep(0.5)
        failing = asyncio.create_task(server.fail_over(10))
        with pytest.raises(DatabaseUnavailable, match="connection"):
            await under_way
        with pytest.raises(DatabaseUnavailable, match="refused"):
            await ledger.budgets()
        await failing
        assert [b.limit_nanousd for b in await ledger.budgets()] == [5]

    kernel.run(main())


def test_what_hangs_is_answered_when_the_server_is_back_or_times_out() -> None:
    async def main() -> None:
        server = DatabaseServer(PLAIN)
        server.fail("hanging")
        patient = VirtualLedger(server, VirtualPool(server, 1, statement_timeout_s=60))
        hasty = VirtualLedger(server, VirtualPool(server, 1, statement_timeout_s=2))
        waiting = asyncio.create_task(patient.budgets())
        with pytest.raises(DatabaseUnavailable, match="no answer"):
            await hasty.budgets()
        server.recover()
        assert await waiting == []

    kernel.run(main())


POSTGRES = {"deployment.database.ledger": "postgres"}


def test_a_world_with_a_ledger_meters_its_pool_and_repeats_itself() -> None:
    one, other = play("demo", POSTGRES), play("demo", POSTGRES)
    assert one.sha256() == other.sha256()
    samples = [s for s in one.stations if s.station == "database pool"]
    assert sum(s.arrivals for s in samples) > 10
    assert {r.outcome for r in one.requests} == {"ok"}


def test_an_outage_of_the_database_fails_no_request_of_a_world() -> None:
    fault = {"kind": "database_outage", "at_s": 5, "duration_s": 30}
    run = play("demo", {**POSTGRES, "faults": [fault]})
    assert Counter(r.outcome for r in run.requests) == {"ok": 640}
    assert [e.detail["state"] for e in run.events if e.kind == "ledger"] == ["away", "back"]
    with pytest.raises(ScenarioError, match=r"set deployment\.database\.ledger"):
        play("demo", {"faults": [fault]})


def test_a_spent_budget_turns_requests_of_a_world_away() -> None:
    tenant = play("demo", {"horizon_s": 1}).requests[0].tenant
    run = play("demo", {**POSTGRES, "deployment.database.budgets_usd": {tenant: 0.05}})
    refused = Counter(r.outcome for r in run.requests)
    assert refused["rejected"] > 100
    assert sum(r.cost_usd for r in run.requests) <= 0.05


def test_a_pool_of_two_on_a_slow_link_is_the_largest_stage_of_a_world_and_at_eight_it_is_not() -> (
    None
):
    def mean(size: int) -> tuple[float, float]:
        run = play(
            "demo",
            {
                **POSTGRES,
                "horizon_s": 25,
                "workload.arrivals": {"kind": "poisson", "rate_per_s": 60},
                "deployment.cache.enabled": False,
                "deployment.instances.concurrency": 200,
                "deployment.database.max_size": size,
                "deployment.database.budget_requests": 1,
                "deployment.database.budget_wait_s": 60,
                "deployment.database.acquire_timeout_s": 60,
                "deployment.database.budgets_usd": {"": 1e6, "default": 1e6},
                "database": {"one_way_s": 0.025},
            },
        )
        ok = [r for r in run.requests if r.outcome == "ok"]
        return (
            sum(r.database_s for r in ok) / len(ok),
            sum(r.llm_first_token_s + r.llm_stream_s for r in ok) / len(ok),
        )

    database_s, llm_s = mean(2)
    assert database_s > 4 * llm_s
    database_s, llm_s = mean(8)
    assert database_s < llm_s / 2
