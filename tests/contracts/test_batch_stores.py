"""One suite for every `BatchStore`, each beside the ledger that it belongs to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from reference_impl.batches.port import Batch, BatchRequest, Claim, RequestProgress
from reference_impl.database.entries import KeyBudget, LedgerEntry
from reference_impl.database.port import LedgerStore
from tests.contracts.ledger_worlds import LEDGER_WORLDS, LedgerWorld, ledger_world
from tests.reference_impl.database.rows import CENT, entry

OK = b'{"type":"succeeded"}'


@pytest.fixture(params=LEDGER_WORLDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> LedgerWorld:
    return ledger_world(request.param, tmp_path)


def requests(number: int) -> list[BatchRequest]:
    return [
        BatchRequest(f"custom-{n}", msgspec.Raw(b'{"n":%d,"text":"n\xc3\xa4me \\u0000"}' % n))
        for n in range(number)
    ]


def batch_of(number: int, batch_id: str = "b", tenant: str = "k", created_s: float = 5.5) -> Batch:
    return Batch(batch_id, tenant, created_s, created_s + 100, processing=number)


async def entries(store: LedgerStore) -> list[LedgerEntry]:
    return [found async for page in store.entries() for found in page]


async def ids(store: LedgerStore, tenant: str, limit: int, **cursor: str) -> tuple[list[str], bool]:
    page = await store.batches().of_tenant(tenant, limit, **cursor)
    assert page is not None
    return [batch.batch_id for batch in page.batches], page.has_more


def test_a_batch_is_kept_as_it_was_given_and_counts_its_results(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.batches().create(batch_of(5), requests(5))
        store = other.batches()
        assert await store.get("b") == batch_of(5)
        await store.record("b", 0, "succeeded", OK, 6.0)
        await store.record("b", 1, "errored", b"{}", 7.0)
        await store.record("b", 2, "canceled", b"{}", 9.0)
        seen = await one.batches().get("b")
        assert seen == msgspec.structs.replace(
            batch_of(5), processing=2, succeeded=1, errored=1, canceled=1
        )
        assert seen.status == "in_progress"
        await store.expire("b", b'{"type":"expired"}', 8.0)
        seen = await one.batches().get("b")
        assert seen is not None
        assert (seen.status, seen.expired, seen.ended_s) == ("ended", 2, 9.0)
        assert await store.results("b", 1, 2) == [
            (2, "custom-2", b"{}"),
            (3, "custom-3", b'{"type":"expired"}'),
        ]
        assert await store.get("unknown") is None
        assert await store.results("unknown", -1, 10) == []

    world.play(body)


def test_a_claim_counts_the_runs_until_there_is_a_result(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.batches().create(batch_of(2), requests(2))
        params = bytes(requests(2)[1].params)
        first = await one.batches().claim("b", 1)
        assert first == Claim(1, "k", params, 5.5, 105.5, is_canceled=False, custom_id="custom-1")
        await other.batches().cancel("b", 6.0)
        await one.batches().cancel("b", 7.0)
        second = await other.batches().claim("b", 1)
        assert second == Claim(2, "k", params, 5.5, 105.5, is_canceled=True, custom_id="custom-1")
        seen = await one.batches().get("b")
        assert seen is not None
        assert (seen.status, seen.cancel_initiated_s) == ("canceling", 6.0)
        await one.batches().record("b", 1, "canceled", b"{}", 8.0)
        assert await other.batches().claim("b", 1) is None
        assert await other.batches().claim("b", 2) is None
        assert await other.batches().claim("unknown", 0) is None

    world.play(body)


def test_the_progress_of_each_request_is_told(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        store = one.batches()
        await store.create(batch_of(4), requests(4))
        await store.claim("b", 1)
        await store.claim("b", 1)
        await store.record("b", 1, "succeeded", OK, 6.5)
        await store.claim("b", 2)
        assert await other.batches().progress("b", -1, 3) == [
            RequestProgress(0, "custom-0", 0),
            RequestProgress(1, "custom-1", 2, "succeeded", 6.5),
            RequestProgress(2, "custom-2", 1),
        ]
        assert await other.batches().progress("b", 2, 3) == [RequestProgress(3, "custom-3", 0)]
        assert await other.batches().progress("b", 3, 3) == []
        assert await other.batches().progress("unknown", -1, 3) == []

    world.play(body)


def test_the_first_result_stands_and_costs_once(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        await one.set_budget("k", 10 * CENT)
        await one.batches().create(batch_of(1), requests(1))
        for store in (one, other, one):
            await store.batches().claim("b", 0)
        row = entry(7, kind="batch")
        recorded = await asyncio.gather(
            one.batches().record("b", 0, "succeeded", OK, 6.0, row),
            other.batches().record("b", 0, "errored", OK, 6.0, row),
        )
        assert sorted(recorded) == [False, True]
        # Three runs, of which one was recorded: two calls were made again.
        assert await entries(one) == [msgspec.structs.replace(row, attempts=1 + 2)]
        assert await one.budgets() == [KeyBudget("k", 10 * CENT, CENT, 0)]

    world.play(body)


def test_what_nobody_waits_for_costs_nothing(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        store = one.batches()
        await store.create(batch_of(1), requests(1))
        await store.delete("b")
        assert not await other.batches().record("b", 0, "succeeded", OK, 6.0, entry(1))
        assert await entries(one) == []
        assert await store.get("b") is None

    world.play(body)


def test_what_a_crash_left_stored_is_found(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        store = one.batches()
        for name, created_s in (("late", 9.0), ("early", 1.0), ("whole", 2.0), ("done", 3.0)):
            await store.create(batch_of(3, name, created_s=created_s), requests(3))
        await store.mark_enqueued("whole")
        await store.record("early", 1, "errored", b"{}", 10.0)
        await store.expire("done", b"{}", 10.0)
        assert await other.batches().not_enqueued() == {"early": [0, 2], "late": [0, 1, 2]}

    world.play(body)


def test_a_tenants_batches_are_its_own_the_newest_first_page_by_page(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        store = one.batches()
        for name, tenant, created_s in (
            ("b", "x", 1.0),
            ("a", "x", 2.0),
            ("d", "y", 3.0),
            ("c", "x", 2.0),
        ):
            await store.create(batch_of(1, name, tenant, created_s), requests(1))
        assert await ids(other, "x", 9) == (["c", "a", "b"], False)
        assert await ids(other, "x", 3) == (["c", "a", "b"], False)
        assert await ids(other, "x", 2) == (["c", "a"], True)
        assert await ids(other, "x", 1, after_id="c") == (["a"], True)
        assert await ids(other, "x", 1, after_id="a") == (["b"], False)
        assert await ids(other, "x", 1, after_id="b") == ([], False)
        assert await ids(other, "x", 1, before_id="b") == (["a"], True)
        assert await ids(other, "x", 2, before_id="b") == (["c", "a"], False)
        assert await ids(other, "x", 2, before_id="c") == ([], False)
        assert await ids(other, "nobody", 2) == ([], False)
        for cursor in ("d", "unknown"):  # another tenant's is as unknown as none
            assert await other.batches().of_tenant("x", 2, after_id=cursor) is None
            assert await other.batches().of_tenant("x", 2, before_id=cursor) is None

    world.play(body)


def test_a_page_counts_the_results_of_its_batches(world: LedgerWorld) -> None:
    async def body(one: LedgerStore, other: LedgerStore) -> None:
        store = one.batches()
        for n, name in enumerate(("old", "middle", "new")):
            await store.create(batch_of(2, name, created_s=float(n)), requests(2))
        await store.record("middle", 0, "succeeded", OK, 6.0)
        await store.record("new", 0, "succeeded", OK, 6.0)
        await store.record("new", 1, "errored", OK, 7.0)
        page = await other.batches().of_tenant("k", 2)
        assert page is not None
        assert page.batches == [await store.get("new"), await store.get("middle")]
        assert [(found.processing, found.ended_s) for found in page.batches] == [
            (0, 7.0),
            (1, None),
        ]

    world.play(body)
