"""One suite for every `LedgerStore`: in memory and virtual on both loops, SQLite and PostgreSQL (also behind pgbouncer) on a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from reference_impl.database.aggregates import export_parquet, total
from reference_impl.database.budgets import UNAFFORDABLE_NANOUSD, BudgetExceeded, Budgets
from reference_impl.database.entries import UNCOUNTED, KeyBudget, LedgerEntry, to_nanousd
from reference_impl.database.errors import InvalidValue
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.database.port import Grant, LedgerStore
from reference_impl.database.postgres_store import PostgresLedger
from reference_impl.database.sqlite_store import SqliteLedger
from reference_impl.database.writer import LedgerWriter
from reference_impl.deployment import DatabaseSpec
from simulation.models.database import VirtualLedger
from tests.contracts.ledger_worlds import LEDGER_WORLDS, LedgerWorld, ledger_world
from tests.reference_impl.database.rows import CENT, batch, entry


@pytest.fixture(params=LEDGER_WORLDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> LedgerWorld:
    return ledger_world(request.param, tmp_path)


async def everything(store: LedgerStore) -> list[LedgerEntry]:
    return [found async for page in store.entries() for found in page]


def test_entries_are_kept_as_they_were_given(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        given = [
            entry(1),
            entry(
                2,
                kind="batch",
                outcome="timeout",
                cache="l1",
                cached_tokens=7,
                saved_nanousd=3,
                latency_s=1.25,
                instance="instance-1",
            ),
            entry(3, "näme — \U0001f600", cost_nanousd=2**62),
        ]
        assert await one.write(batch(1, given)) == 3
        assert await everything(other) == given

    world.play(body)


def test_a_batch_that_is_written_again_changes_nothing(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 100 * CENT)
        await one.reserve("k", "h", 30 * CENT, 0, 60)
        again = batch(1, [entry(n) for n in range(10)], releases=[("h", "k", 20 * CENT)])
        assert await one.write(again) == 10
        assert await other.write(again) == 0
        assert await one.budgets() == [KeyBudget("k", 100 * CENT, 10 * CENT, 10 * CENT)]
        assert len(await everything(one)) == 10

    world.play(body)


def test_an_entry_that_another_writer_has_written_is_not_counted_twice(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 100 * CENT)
        await one.write(batch(1, [entry(n) for n in range(10)]))
        assert await other.write(batch(1, [entry(n) for n in range(5, 15)], writer="v")) == 5
        assert (await one.budgets())[0].spent_nanousd == 15 * CENT
        assert [e.entry_id for e in await everything(one)] == [entry(n).entry_id for n in range(15)]

    world.play(body)


def test_a_batch_outside_the_count_is_applied_whenever_it_comes_and_remembered_nowhere(
    world: LedgerWorld,
) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 100 * CENT)
        assert await one.write(batch(UNCOUNTED, [entry(1)])) == 1
        assert await one.write(batch(UNCOUNTED, [entry(1), entry(2)])) == 1
        assert await one.write(batch(1, [entry(3)])) == 1
        assert await one.write(batch(UNCOUNTED, [entry(4)])) == 1
        assert (await other.budgets())[0].spent_nanousd == 4 * CENT

    world.play(body)


@pytest.mark.parametrize(
    "field",
    [
        {"input_tokens": 2**63},
        {"cost_nanousd": -(2**70)},
        {"attempts": 2**80},
        {"instance": "lone \ud800"},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_value_that_no_column_holds_is_told_apart_from_an_outage(
    field: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("sqlite", "postgres", "pgbouncer"):

        async def body(one: LedgerStore, other: LedgerStore) -> None:
            await one.set_budget("k", 100 * CENT)
            rows = [entry(1), entry(2, **field), entry(3)]
            with pytest.raises(InvalidValue):
                await one.write(batch(1, rows))
            assert await everything(other) == []
            assert await one.write(batch(1, rows[:1])) == 1
            with pytest.raises(InvalidValue):  # beside a row that is known, which takes another way
                await one.write(batch(2, rows))
            assert await one.write(batch(2, rows[2:])) == 1
            assert (await other.budgets())[0].spent_nanousd == 2 * CENT

        ledger_world(name, tmp_path).play(body)


def test_writers_at_once_lose_and_double_nothing(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        keys = ("a", "b", "c", "d")
        for key in keys:
            await one.set_budget(key, 1000 * CENT)

        async def write(store: LedgerStore, writer: str) -> None:
            for sequence in range(1, 9):
                # Every writer writes the same rows, each in an order of keys of its own: what would deadlock, does.
                rows = [entry(sequence * 100 + n, keys[n % 4]) for n in range(20)]
                if writer == "v":
                    rows.reverse()
                await store.write(batch(sequence, rows, writer=writer))

        async with asyncio.TaskGroup() as group:
            group.create_task(write(one, "w"))
            group.create_task(write(other, "v"))
        assert len(await everything(one)) == 160
        assert [b.spent_nanousd for b in await one.budgets()] == [40 * CENT] * 4

    world.play(body)


def test_a_hundred_at_once_on_a_key_with_money_for_ten_are_ten(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 10 * CENT)
        grants = await asyncio.gather(
            *((one, other)[n % 2].reserve("k", f"h{n % 2}", CENT, CENT, 60) for n in range(100))
        )
        assert sorted(grant.nanousd for grant in grants) == [0] * 90 + [CENT] * 10
        assert (await one.budgets())[0].remaining_nanousd == 0

    world.play(body)


def test_more_is_granted_only_while_there_is_plenty(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 50 * CENT)
        granted = [(await one.reserve("k", "h", CENT, 10 * CENT, 60)).nanousd for _ in range(4)]
        assert granted == [10 * CENT, 10 * CENT, CENT, CENT]

    world.play(body)


def test_the_largest_reservation_is_compared_with_the_largest_limit(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        most = UNAFFORDABLE_NANOUSD
        await one.set_budget("k", to_nanousd(1e9))  # the largest that a deployment can set
        assert (await one.reserve("k", "h", most, most, 60)).nanousd == 0
        assert (await other.reserve("k", "h", CENT, most, 60)).nanousd == CENT
        assert await other.reserve("k", "h", 0, 0, 60) == Grant(0)
        assert await other.reserve("nobody", "h", 0, 0, 60) == Grant(0, budgeted=False)
        assert await one.budgets() == [KeyBudget("k", to_nanousd(1e9), 0, CENT)]

    world.play(body)


@pytest.mark.parametrize("budget_requests", [1, 50])
def test_a_need_that_no_column_holds_is_refused_and_opens_nothing_for_others(
    world: LedgerWorld, budget_requests: int
) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 10 * CENT)
        spec = DatabaseSpec(budget_requests=budget_requests)
        budgets = Budgets(one, LedgerWriter(one, spec, name="w"), spec, name="w")
        for need in (2**63 // 200, 2**63 // 50, 2**63 // 4, 2**63, 10**30):
            with pytest.raises(BudgetExceeded, match="does not cover"):
                await budgets.reserve("k", need)
            assert (await budgets.reserve("nobody", need)).nanousd == 0
        assert (await budgets.reserve("k", 9 * CENT)).nanousd == 9 * CENT
        with pytest.raises(BudgetExceeded, match="does not cover"):
            await budgets.reserve("k", 2 * CENT)
        assert await other.budgets() == [KeyBudget("k", 10 * CENT, 0, 9 * CENT)]

    world.play(body)


def test_a_key_without_a_budget_is_not_limited(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        grant = await one.reserve("nobody", "h", CENT, CENT, 60)
        assert (grant.nanousd, grant.budgeted) == (0, False)
        await one.set_budget("k", 0)
        grant = await other.reserve("k", "h", CENT, CENT, 60)
        assert (grant.nanousd, grant.budgeted) == (0, True)
        await one.set_budget("k", None)
        assert not (await other.reserve("k", "h", CENT, CENT, 60)).budgeted
        assert await one.budgets() == []

    world.play(body)


def test_a_budget_counts_what_was_spent_before_it_was_set(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.write(batch(1, [entry(n) for n in range(3)]))
        await one.set_budget("k", 5 * CENT)
        assert (await other.budgets())[0].spent_nanousd == 3 * CENT
        await one.set_budget("k", 9 * CENT)
        assert await other.budgets() == [KeyBudget("k", 9 * CENT, 3 * CENT, 0)]

    world.play(body)


def test_what_is_released_can_be_reserved_again_and_no_more_than_was_held(
    world: LedgerWorld,
) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 10 * CENT)
        await one.reserve("k", "h", 10 * CENT, 0, 60)
        assert (await other.reserve("k", "g", CENT, 0, 60)).nanousd == 0
        releases = [("h", "k", 50 * CENT), ("unknown", "k", CENT)]
        await one.write(batch(1, [entry(1)], releases=releases))
        assert await one.budgets() == [KeyBudget("k", 10 * CENT, CENT, 0)]
        assert (await other.reserve("k", "g", 9 * CENT, 0, 60)).nanousd == 9 * CENT

    world.play(body)


def test_a_hold_that_holds_nothing_any_more_is_forgotten_and_can_be_taken_again(
    world: LedgerWorld,
) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 100 * CENT)
        for turn in range(1, 4):
            await one.reserve("k", "h", 5 * CENT, 0, 60)
            await one.reserve("k", f"h{turn}", 5 * CENT, 0, 60)
            part = [("h", "k", 2 * CENT)]
            await one.write(batch(2 * turn - 1, releases=part))
            assert await holds(one) == {"h": 3 * CENT, f"h{turn}": 5 * CENT}
            rest = [("h", "k", 3 * CENT), (f"h{turn}", "k", 9 * CENT)]
            await one.write(batch(2 * turn, releases=rest, renewals=[("h", "k")]))
            assert await holds(one) == {}
            assert await other.budgets() == [KeyBudget("k", 100 * CENT, 0, 0)]

    world.play(body)


async def holds(store: LedgerStore) -> dict[str, int]:
    """What the store keeps of holds."""
    query = "SELECT hold, held_nanousd FROM ledger_holds"
    match store:
        case PostgresLedger():
            return {row[0]: row[1] for row in await store.pool.fetch(query)}
        case SqliteLedger():
            return dict(await store.query(query))
        case VirtualLedger():
            return await holds(store._server.ledger)
        case MemoryLedger():
            return {hold: held.nanousd for (hold, _), held in store._holds.items()}
        case _:
            raise TypeError(store)


def test_what_a_vanished_process_held_is_free_after_its_hold_has_ended(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 10 * CENT)
        await one.reserve("k", "vanished", 9 * CENT, 0, 0.2)
        await one.reserve("k", "alive", CENT, 0, 0.2)
        assert (await other.reserve("k", "g", 9 * CENT, 0, 60)).nanousd == 0
        await asyncio.sleep(0.15)
        await one.write(batch(1, renewals=[("alive", "k")]))
        await asyncio.sleep(0.1)
        assert (await other.reserve("k", "g", 9 * CENT, 0, 60)).nanousd == 0, "it is given notice"
        await asyncio.sleep(0.05)
        assert (await other.reserve("k", "g", 9 * CENT, 0, 60)).nanousd == 9 * CENT
        # The vanished one comes back and gives back what is no longer its own.
        await one.write(batch(2, releases=[("vanished", "k", 9 * CENT)]))
        assert await one.budgets() == [KeyBudget("k", 10 * CENT, 0, 10 * CENT)]

    world.play(body)


@pytest.mark.parametrize("sign_of_life", ["renewal", "reservation"])
def test_a_hold_whose_owner_answers_to_its_notice_lives_on(
    world: LedgerWorld, sign_of_life: str
) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 10 * CENT)
        await one.reserve("k", "late", 8 * CENT, 0, 0.2)
        await asyncio.sleep(0.25)
        assert (await other.reserve("k", "g", 9 * CENT, 0, 60)).nanousd == 0
        if sign_of_life == "renewal":
            await one.write(batch(1, renewals=[("late", "k")]))
        else:
            assert (await one.reserve("k", "late", CENT, 0, 0.2)).nanousd == CENT
        await asyncio.sleep(0.05)
        assert (await other.reserve("k", "g", 9 * CENT, 0, 60)).nanousd == 0
        (budget,) = await other.budgets()
        assert budget.held_nanousd >= 8 * CENT

    world.play(body)


def test_spend_is_summed_by_key_model_day_and_outcome(world: LedgerWorld, tmp_path: Path) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        day = 86_400
        rows = [
            entry(1, "a"),
            entry(2, "a", cost_nanousd=0, cache="l1", saved_nanousd=CENT),
            entry(3 + day, "b", cost_nanousd=5 * CENT, outcome="stream_broken", cached_tokens=4),
        ]
        await one.write(batch(1, rows))
        by_key = await other.spend("key")
        assert [(s.group, s.requests, s.cost_nanousd) for s in by_key] == [
            ("a", 2, CENT),
            ("b", 1, 5 * CENT),
        ]
        assert (by_key[0].cache_hits, by_key[0].saved_nanousd) == (1, CENT)
        assert (by_key[1].wasted_nanousd, by_key[1].cached_tokens) == (5 * CENT, 4)
        days = await other.spend("day")
        assert [(s.group, s.requests) for s in days] == [("2026-09-21", 2), ("2026-09-22", 1)]
        assert [s.group for s in await other.spend("model")] == ["claude-haiku-4-5"]
        assert [s.group for s in await other.spend("outcome")] == ["ok", "stream_broken"]
        assert total(by_key).cost_nanousd == 6 * CENT
        later = await other.spend("key", since_s=rows[2].at_s)
        assert [s.group for s in later] == ["b"]
        assert await export_parquet(other.entries(), tmp_path / "ledger.parquet") == 3
        with pytest.raises(FileExistsError):
            await export_parquet(other.entries(), tmp_path / "ledger.parquet")

    world.play(body)
