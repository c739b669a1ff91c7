"""Budgets through the gateway's own path: nothing is overspent, everything that was reserved comes back. In virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from reference_impl.database.accounting import Accounting
from reference_impl.database.budgets import BudgetExceeded
from reference_impl.database.connect import build_accounting
from reference_impl.database.entries import EntryBatch, KeyBudget, to_nanousd
from reference_impl.database.errors import DatabaseUnavailable, StatementFailed
from reference_impl.database.port import Grant
from reference_impl.deployment import DatabaseSpec
from reference_impl.errors import Rejected, RequestTimeout, UpstreamFailed
from reference_impl.messages import Call, Chunk, Completion, Emit, Usage
from reference_impl.prices import load_prices
from reference_impl.telemetry import RequestTrace
from simulation import kernel
from simulation.models.database import DatabaseServer, Outage, VirtualLedger, VirtualPool

MODEL = "claude-haiku-4-5"  # $1 and $5 per million tokens; cache writes $1.25, for an hour $2
# The most that the call below may cost, and what it does cost.
MOST = to_nanousd(1000 * 2e-6 + 1000 * 5e-6)
COST = to_nanousd(1000 * 1e-6 + 100 * 5e-6)


def call(number: int, key: str = "k", *, stream: bool = False) -> Call:
    return Call(
        request_id=number,
        model=MODEL,
        max_tokens=1000,
        input_tokens=1000,
        stream=stream,
        trace=RequestTrace(),
        tenant=key,
    )


async def answer(_call: Call, _emit: Emit | None) -> Completion:
    await asyncio.sleep(1)
    return Completion(Usage(1000, 100))


class Bench:
    """Gateways over one virtual database."""

    def __init__(self, spec: DatabaseSpec | None = None, gateways: int = 1) -> None:
        self.server = DatabaseServer()
        self.spec = spec or DatabaseSpec()
        self.gateways = [self.gateway(f"g{n}") for n in range(gateways)]

    def gateway(self, name: str) -> Accounting:
        store = VirtualLedger(self.server, VirtualPool(self.server, 4))
        clock = asyncio.get_running_loop().time
        return build_accounting(store, self.spec, source=name, wall_clock=clock)

    async def start(self, limit: int) -> None:
        for gateway in self.gateways:
            await gateway.start({})
        await self.server.ledger.set_budget("k", limit)

    async def ask(self, number: int, work: Callable[..., Awaitable[Completion]] = answer) -> str:
        accounting = self.gateways[number % len(self.gateways)]

        async def complete(asked: Call, emit: Emit | None) -> Completion:
            return await accounting.forwarded(asked, emit, work)

        try:
            await accounting.recorded(call(number), None, complete)
        except BudgetExceeded:
            return "refused"
        except UpstreamFailed:
            return "failed"
        except asyncio.CancelledError:
            return "cancelled"
        return "ok"

    async def settled(self) -> KeyBudget:
        for gateway in self.gateways:
            await gateway.aclose()
        return (await self.server.ledger.budgets())[0]


@pytest.mark.parametrize("gateways", [1, 3])
@pytest.mark.parametrize("budget_requests", [1, 50])
def test_of_a_hundred_at_once_on_a_key_with_money_for_ten_exactly_ten_pass(
    gateways: int, budget_requests: int
) -> None:
    async def main() -> None:
        bench = Bench(DatabaseSpec(budget_requests=budget_requests), gateways)
        await bench.start(10 * MOST)
        outcomes = Counter(await asyncio.gather(*(bench.ask(n) for n in range(100))))
        assert outcomes == {"ok": 10, "refused": 90}
        assert await bench.settled() == KeyBudget("k", 10 * MOST, 10 * COST, 0)
        rows = bench.server.ledger._entries.values()
        assert Counter(row.outcome for row in rows) == {"ok": 10, "rejected": 90}
        assert sum(row.cost_nanousd for row in rows) == 10 * COST

    kernel.run(main())


def test_cancelled_and_failed_requests_give_back_what_they_reserved() -> None:
    async def fail(_call: Call, _emit: Emit | None) -> Completion:
        await asyncio.sleep(0.5)
        raise UpstreamFailed("no")

    async def main() -> None:
        bench = Bench()
        await bench.start(10 * MOST)
        async with asyncio.TaskGroup() as group:
            failing = [group.create_task(bench.ask(n, fail)) for n in range(5)]
            leaving = [group.create_task(bench.ask(n)) for n in range(5, 10)]
            await asyncio.sleep(0.25)
            for task in leaving:
                task.cancel()
        outcomes = Counter(task.result() for task in [*failing, *leaving])
        assert outcomes == {"failed": 5, "cancelled": 5}
        again = Counter(await asyncio.gather(*(bench.ask(n) for n in range(10, 30))))
        assert again["ok"] == 10
        assert await bench.settled() == KeyBudget("k", 10 * MOST, 10 * COST, 0)

    kernel.run(main())


def test_whoever_is_cancelled_at_any_instant_leaks_nothing() -> None:
    async def main() -> None:
        bench = Bench(DatabaseSpec(budget_requests=1))
        await bench.start(1000 * MOST)
        for step in range(60):
            task = asyncio.create_task(bench.ask(step))
            await asyncio.sleep(step * 20e-6)  # from before the reservation to inside the work
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        left = await bench.settled()
        assert (left.held_nanousd, left.spent_nanousd) == (0, 0)

    kernel.run(main())


def test_a_stream_that_its_client_leaves_is_billed_by_what_was_delivered() -> None:
    async def stream(_call: Call, emit: Emit | None) -> Completion:
        assert emit is not None
        await emit(Chunk(b"event: content_block_delta\ndata: {}\n\n" * 7))
        await emit(Chunk(b"event: ping\n\n", content=False))
        await asyncio.sleep(60)
        raise AssertionError("its client had left")

    async def main() -> None:
        bench = Bench()
        await bench.start(10 * MOST)
        accounting = bench.gateways[0]

        async def swallow(_chunk: Chunk) -> None:
            pass

        async def complete(asked: Call, emit: Emit | None) -> Completion:
            return await accounting.forwarded(asked, emit, stream)

        task = asyncio.create_task(accounting.recorded(call(1, stream=True), swallow, complete))
        await asyncio.sleep(5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        left = await bench.settled()
        delivered = to_nanousd(load_prices().price_usd(MODEL, Usage(1000, 7)))
        assert (left.spent_nanousd, left.held_nanousd) == (delivered, 0)
        (row,) = bench.server.ledger._entries.values()
        assert (row.outcome, row.output_tokens, row.cost_nanousd) == ("cancelled", 7, delivered)

    kernel.run(main())


@pytest.mark.parametrize("outage", ["refusing", "hanging"])
def test_requests_go_on_while_the_database_is_away_and_are_booked_later(outage: str) -> None:
    async def main() -> None:
        bench = Bench(DatabaseSpec(budget_requests=1, budget_wait_s=0.5))
        await bench.start(10 * MOST)
        bench.server.fail(outage)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        outcomes = Counter(await asyncio.gather(*(bench.ask(n) for n in range(20))))
        assert outcomes == {"ok": 20}
        assert loop.time() - started_s < 2.0, "all wait for the same answer at once, and not long"
        bench.server.recover()
        await asyncio.sleep(60)
        left = await bench.settled()
        assert left.spent_nanousd == 20 * COST
        assert left.held_nanousd == 0

    kernel.run(main())


def test_requests_are_refused_while_the_database_is_away_where_that_is_wanted() -> None:
    async def main() -> None:
        bench = Bench(DatabaseSpec(budget_outage="refuse"))
        await bench.start(10 * MOST)
        bench.server.fail("refusing")
        with pytest.raises(Rejected, match="budgets cannot be checked") as caught:
            await bench.ask(1)
        assert caught.value.status == 503
        bench.server.recover()
        await asyncio.sleep(2)
        assert await bench.ask(2) == "ok"
        await bench.settled()

    kernel.run(main())


def test_a_database_that_says_no_to_a_reservation_is_not_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Particular(VirtualLedger):
        async def reserve(self, key_id: str, *rest: Any) -> Grant:
            if rest[1] == 13:
                raise StatementFailed("not that number", safe_to_repeat=True)
            return await super().reserve(key_id, *rest)

    async def main() -> None:
        bench = Bench(DatabaseSpec(budget_requests=1, budget_outage="allow"), gateways=0)
        store = Particular(bench.server, VirtualPool(bench.server, 4))
        bench.gateways = [build_accounting(store, bench.spec, source="g", wall_clock=lambda: 0.0)]
        await bench.start(10 * MOST)
        budgets = bench.gateways[0].budgets
        for _ in range(3):
            with pytest.raises(Rejected, match="the database refuses") as caught:
                await budgets.reserve("k", 13)
            assert caught.value.status == 503
        outcomes = Counter(await asyncio.gather(*(bench.ask(n) for n in range(100))))
        assert outcomes == {"ok": 10, "refused": 90}
        assert await bench.settled() == KeyBudget("k", 10 * MOST, 10 * COST, 0)

    kernel.run(main())
    assert [record.levelname for record in caplog.records] == ["ERROR"], "told once"


class CutOff(VirtualLedger):
    """A gateway's way to the database, which can be cut while others still have theirs."""

    cut = False

    async def write(self, batch: EntryBatch) -> int:
        self._check()
        return await super().write(batch)

    async def reserve(self, *arguments: Any) -> Grant:
        self._check()
        return await super().reserve(*arguments)

    def _check(self) -> None:
        if self.cut:
            raise DatabaseUnavailable("no route to the database", safe_to_repeat=True)


async def overspent_after(lose: Callable[[Bench], None], find: Callable[[Bench], None]) -> int:
    """Of two gateways the first spends what it holds while it has lost the database, for longer than `hold_s`; then the
    second spends what it gets. The limit is for 250 requests, each of which costs all that it may. Returns what is beyond it.
    """

    async def dear(_call: Call, _emit: Emit | None) -> Completion:
        return Completion(Usage(0, 1000, 1000, 0, 1000))

    async def ask(number: int) -> str:
        try:
            return await bench.ask(number, dear)
        except Rejected:
            return "rejected"

    bench = Bench(DatabaseSpec(budget_outage="refuse"), gateways=0)
    store = CutOff(bench.server, VirtualPool(bench.server, 4))
    bench.gateways = [
        build_accounting(store, bench.spec, source="g0", wall_clock=lambda: 0.0),
        bench.gateway("g1"),
    ]
    await bench.start(250 * MOST)
    assert await ask(0) == "ok"
    assert (await bench.server.ledger.budgets())[0].held_nanousd == 50 * MOST
    lose(bench)
    assert Counter([await ask(2 * n) for n in range(100)]) == {"ok": 49, "rejected": 51}
    await asyncio.sleep(bench.spec.hold_s * 1.25)
    find(bench)
    for number in range(1500):
        await ask(2 * number + 1)
        await asyncio.sleep(0.02)
    store.cut = False
    left = await bench.settled()
    assert left.held_nanousd == 0
    return left.spent_nanousd - left.limit_nanousd


@pytest.mark.parametrize("outage", ["refusing", "hanging"])
def test_nothing_is_overspent_by_an_outage_that_is_longer_than_a_hold(outage: Outage) -> None:
    found = overspent_after(lambda b: b.server.fail(outage), lambda b: b.server.recover())
    assert kernel.run(found) == 0


def test_a_gateway_that_alone_is_cut_off_for_longer_overspends_no_more_than_it_held() -> None:
    def lose(bench: Bench) -> None:
        store = bench.gateways[0].store
        assert isinstance(store, CutOff)
        store.cut = True

    assert kernel.run(overspent_after(lose, lambda _bench: None)) == 50 * MOST


def test_what_one_gateway_took_and_does_not_use_another_can_have() -> None:
    async def main() -> None:
        bench = Bench(DatabaseSpec(budget_requests=50), gateways=2)
        await bench.start(250 * MOST)
        assert await bench.ask(0) == "ok"  # g0 takes money for 50
        await asyncio.sleep(5)
        assert (await bench.server.ledger.budgets())[0].held_nanousd == 0
        await bench.settled()

    kernel.run(main())


def test_a_key_without_a_budget_asks_the_database_seldom() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.start(0)
        await bench.server.ledger.set_budget("k", None)
        for number in range(100):
            assert await bench.ask(number) == "ok"  # one second each
        assert bench.server._numbers["reserve"] <= 100 / 5 + 1
        for gateway in bench.gateways:
            await gateway.aclose()

    kernel.run(main())


def test_a_limit_outlives_its_line_in_the_configuration_until_one_lifts_it() -> None:
    async def main() -> None:
        server = DatabaseServer()

        async def started_with(number: int, configuration: str) -> Counter[str]:
            bench = Bench(DatabaseSpec.model_validate_json(configuration), gateways=0)
            bench.server = server
            bench.gateways = [gateway := bench.gateway(f"g{number}")]
            await gateway.start(bench.spec.budgets_usd)
            outcomes = Counter([await bench.ask(n) for n in range(10)])
            await gateway.aclose()
            return outcomes

        limit_usd = 1.2 * MOST / 1e9
        limited = await started_with(1, f'{{"budgets_usd": {{"k": {limit_usd}}}}}')
        assert limited == {"ok": 1, "refused": 9}
        assert await started_with(2, "{}") == {"refused": 10}, "others may share the database"
        assert await started_with(3, '{"budgets_usd": {"k": null}}') == {"ok": 10}
        assert await started_with(4, "{}") == {"ok": 10}
        assert await server.ledger.budgets() == []

    kernel.run(main())


def test_the_answer_to_an_exhausted_budget_says_what_to_do() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.start(MOST - 1)
        accounting = bench.gateways[0]
        with pytest.raises(BudgetExceeded, match="raise it, or ask for fewer tokens") as caught:
            await accounting.recorded(
                call(1), None, lambda c, e: accounting.forwarded(c, e, answer)
            )
        assert (caught.value.status, caught.value.error_type) == (402, "billing_error")
        await bench.settled()

    kernel.run(main())


def test_an_answer_from_the_cache_reserves_nothing_and_counts_as_saved() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.start(0)
        asked = call(1)

        async def cached(hit: Call, _emit: Emit | None) -> Completion:
            hit.trace.cache = "l1"
            return Completion(Usage(1000, 100))

        await bench.gateways[0].recorded(asked, None, cached)
        left = await bench.settled()
        (row,) = bench.server.ledger._entries.values()
        assert (row.cost_nanousd, row.saved_nanousd, row.cache) == (0, COST, "l1")
        assert left.spent_nanousd == 0

    kernel.run(main())


def test_a_row_tells_how_a_request_failed() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.start(10 * MOST)

        async def late(_call: Call, _emit: Emit | None) -> Completion:
            raise RequestTimeout("too late")

        with pytest.raises(RequestTimeout):
            await bench.ask(1, late)
        await bench.settled()
        (row,) = bench.server.ledger._entries.values()
        assert (row.outcome, row.cost_nanousd, row.key_id) == ("timeout", 0, "k")

    kernel.run(main())
