"""CacheLayer over its own memory, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TypeVar

import pytest

from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.keys import cache_key
from reference_impl.caches.memory_cache import ENTRY_OVERHEAD_BYTES
from reference_impl.caches.port import InvalidCacheKey, PatternTooBroad
from reference_impl.errors import InvalidRequest, UpstreamFailed
from simulation.kernel import run
from tests.reference_impl.caches.computing import Computing

T = TypeVar("T")


async def held(cache: CacheLayer[T], key: str) -> object:
    found = await cache.find(key)
    return None if found is None else found[0]


def test_the_lesson_s_calls_work_as_written() -> None:
    async def main() -> None:
        cache: CacheLayer[str] = CacheLayer(ttl_seconds=3600)

        async def compute() -> str:
            return "answer"

        assert await cache.get_or_compute("key", compute) == "answer"
        assert await cache.get_or_compute("key", compute, ttl=60) == "answer"
        cache.invalidate("key")
        assert await held(cache, "key") is None

    run(main())


def test_a_plain_function_computes_too() -> None:
    async def main() -> None:
        cache: CacheLayer[int] = CacheLayer()
        assert await cache.fetch("k", lambda: 7) == (7, "miss")
        assert await cache.fetch("k", lambda: 8) == (7, "l1")

    run(main())


def test_a_value_lives_for_its_ttl_and_no_longer() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer(ttl_seconds=10)
        compute = Computing(takes_s=0)
        await cache.fetch("default", compute)
        await cache.fetch("own", compute, 3)
        await asyncio.sleep(2.999)
        assert [(await cache.fetch(k, compute))[1] for k in ("default", "own")] == ["l1", "l1"]
        await asyncio.sleep(0.001)
        assert [(await cache.fetch(k, compute))[1] for k in ("default", "own")] == ["l1", "miss"]
        await asyncio.sleep(7)
        assert (await cache.fetch("default", compute))[1] == "miss"

    run(main())


def test_none_is_a_value_like_any_other() -> None:
    async def main() -> None:
        cache: CacheLayer[None] = CacheLayer()
        assert await cache.fetch("k", lambda: None) == (None, "miss")
        assert await cache.fetch("k", lambda: None) == (None, "l1")

    run(main())


def test_ttl_0_stores_nothing_though_it_serves_and_shares() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer()
        compute = Computing()
        results = await asyncio.gather(*(cache.fetch("k", compute, 0) for _ in range(3)))
        assert results == [(1, "miss"), (1, "coalesced"), (1, "coalesced")]
        assert await cache.fetch("k", compute, 0) == (2, "miss")
        await cache.fetch("k", compute, 10)
        assert await cache.fetch("k", compute, 0) == (3, "l1")

    run(main())


def test_a_thousand_concurrent_misses_compute_once() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer()
        compute = Computing(value="v")
        results = await asyncio.gather(*(cache.fetch("k", compute) for _ in range(1000)))
        assert compute.calls == 1
        assert Counter(results) == {("v", "miss"): 1, ("v", "coalesced"): 999}
        assert asyncio.get_running_loop().time() == 1.0

    run(main())


def test_a_leader_that_fails_hands_over_and_the_rest_get_the_value() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer()
        compute = Computing(fails=[UpstreamFailed("first"), UpstreamFailed("second")])
        results = await asyncio.gather(
            *(cache.fetch("k", compute) for _ in range(1000)), return_exceptions=True
        )
        errors = [str(r) for r in results if isinstance(r, BaseException)]
        assert errors == ["first", "second"]
        assert Counter(r for r in results if not isinstance(r, BaseException)) == {
            (3, "miss"): 1,
            (3, "coalesced"): 997,
        }
        assert (compute.calls, compute.most_running) == (3, 1)

    run(main())


def test_an_error_that_comes_three_times_in_a_row_is_shared_instead_of_tried_a_thousand_times() -> (
    None
):
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer()
        compute = Computing(fails=[UpstreamFailed(str(n)) for n in range(1, 2000)])
        results = await asyncio.gather(
            *(cache.fetch("k", compute) for _ in range(1000)), return_exceptions=True
        )
        assert Counter(map(str, results)) == {"1": 1, "2": 1, "3": 998}
        assert compute.calls == 3
        assert cache.statistics().in_progress == 0

    run(main())


def test_a_final_error_is_shared_at_once() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer()
        compute = Computing(fails=[InvalidRequest("no such field")] * 9)
        results = await asyncio.gather(
            *(cache.fetch("k", compute) for _ in range(5)), return_exceptions=True
        )
        assert list(map(str, results)) == ["no such field"] * 5
        assert compute.calls == 1

    run(main())


def test_a_cancelled_leader_hands_over() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer()
        compute = Computing()
        leader = asyncio.create_task(cache.fetch("k", compute))
        followers = [asyncio.create_task(cache.fetch("k", compute)) for _ in range(3)]
        await asyncio.sleep(0.5)
        leader.cancel()
        assert await asyncio.gather(*followers) == [(2, "miss"), (2, "coalesced"), (2, "coalesced")]
        assert asyncio.get_running_loop().time() == 1.5
        assert leader.cancelled()

    run(main())


@pytest.mark.parametrize("others", [0, 1, 5])
def test_a_follower_cancelled_in_the_turn_in_which_it_is_given_the_lead_passes_it_on(
    others: int,
) -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer()
        compute = Computing()
        tasks: list[asyncio.Task[tuple[object, str]]] = []

        async def fail_and_cancel_the_heir() -> object:
            await asyncio.sleep(1)
            # Runs after the heir's future has the lead, and before its task does.
            asyncio.get_running_loop().call_soon(tasks[1].cancel)
            raise UpstreamFailed("first")

        tasks.append(asyncio.create_task(cache.fetch("k", fail_and_cancel_the_heir)))
        tasks.extend(asyncio.create_task(cache.fetch("k", compute)) for _ in range(1 + others))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(r).__name__ for r in results[:2]] == ["UpstreamFailed", "CancelledError"]
        assert results[2:] == [(1, "miss"), *[(1, "coalesced")] * 4][:others]
        assert compute.calls == min(others, 1)
        assert cache.statistics().in_progress == 0

    run(main())


def test_every_waiter_may_leave_and_the_next_look_up_starts_anew() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer()
        compute = Computing()
        tasks = [asyncio.create_task(cache.fetch("k", compute)) for _ in range(10)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert cache.statistics().in_progress == 0
        assert compute.running == 0
        assert (await cache.fetch("k", compute))[1] == "miss"

    run(main())


def test_a_computation_that_asks_for_its_own_key_is_told_so() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer()

        async def compute() -> object:
            return await cache.get_or_compute("k", compute)

        with pytest.raises(RuntimeError, match="'k' asks the cache for the same key"):
            await cache.get_or_compute("k", compute)

    run(main())


def test_ten_tenants_with_equal_prompts_never_see_each_other_s_answers() -> None:
    async def main() -> None:
        cache: CacheLayer[str] = CacheLayer()

        async def ask(tenant: str) -> str:
            key = cache_key("model", [{"role": "user", "content": "same"}], tenant=tenant)

            async def compute() -> str:
                await asyncio.sleep(1)
                return f"for {tenant}"

            return await cache.get_or_compute(key, compute)

        tenants = [f"tenant-{n}" for n in range(10)] * 20
        for _ in range(2):
            answers = await asyncio.gather(*map(ask, tenants))
            assert answers == [f"for {tenant}" for tenant in tenants]
        assert cache.statistics().computations == 10

    run(main())


def test_the_least_recently_used_leaves_when_the_bytes_are_spent() -> None:
    async def main() -> None:
        each = 1 + 1000 + ENTRY_OVERHEAD_BYTES
        cache: CacheLayer[bytes] = CacheLayer(max_bytes=3 * each, size_of=len)
        for key in "abc":
            await cache.fetch(key, lambda: bytes(1000))
        await cache.fetch("a", lambda: b"")
        await cache.fetch("d", lambda: bytes(1000))
        assert {key: await held(cache, key) is not None for key in "abcd"} == {
            "a": True,
            "b": False,
            "c": True,
            "d": True,
        }
        memory = cache.statistics().memory
        assert (memory.entries, memory.size_bytes, memory.evictions) == (3, 3 * each, 1)

    run(main())


def test_a_value_larger_than_the_cache_is_returned_and_evicts_nothing() -> None:
    async def main() -> None:
        cache: CacheLayer[bytes] = CacheLayer(max_bytes=5000, size_of=len)
        await cache.fetch("small", lambda: b"x")
        assert await cache.fetch("huge", lambda: bytes(10_000)) == (bytes(10_000), "miss")
        assert await held(cache, "small") == b"x"
        assert cache.statistics().memory.too_large == 1

    run(main())


def test_a_stale_value_stands_in_for_a_failure_and_for_its_followers() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer(ttl_seconds=10, stale_if_error_seconds=60)
        compute = Computing(fails=[None, UpstreamFailed("down"), UpstreamFailed("down")])
        await cache.fetch("k", compute)
        await asyncio.sleep(20)
        results = await asyncio.gather(*(cache.fetch("k", compute) for _ in range(3)))
        assert results == [(1, "l1"), (1, "coalesced"), (1, "coalesced")]
        await asyncio.sleep(60)
        with pytest.raises(UpstreamFailed):
            await cache.fetch("k", compute)
        assert cache.statistics().stale_served == 1

    run(main())


def test_a_hit_near_the_end_of_a_value_s_life_refreshes_it_behind_the_caller() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer(ttl_seconds=100, refresh_ahead=0.2)
        compute = Computing(takes_s=5)
        await cache.fetch("k", compute)  # stored at 5 s
        await asyncio.sleep(79)
        assert await cache.fetch("k", compute) == (1, "l1")
        assert compute.calls == 1
        await asyncio.sleep(2)
        assert (
            await asyncio.gather(*(cache.fetch("k", compute) for _ in range(5))) == [(1, "l1")] * 5
        )
        await asyncio.sleep(5)
        assert await cache.fetch("k", compute) == (2, "l1")
        await asyncio.sleep(79)
        assert await cache.fetch("k", compute) == (2, "l1")
        assert compute.calls == 2
        await cache.aclose()

    run(main())


def test_a_refresh_that_fails_is_tried_once_and_leaves_the_value() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer(ttl_seconds=100, refresh_ahead=0.5)
        compute = Computing(takes_s=1, fails=[None, UpstreamFailed("down")])
        await cache.fetch("k", compute)
        await asyncio.sleep(60)
        for _ in range(10):
            assert await cache.fetch("k", compute) == (1, "l1")
            await asyncio.sleep(2)
        statistics = cache.statistics()
        assert (compute.calls, statistics.refreshes, statistics.refresh_failures) == (2, 1, 1)

    run(main())


def test_a_final_failure_is_remembered_for_its_time() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer(negative_ttl_seconds=30)
        compute = Computing(takes_s=0, fails=[InvalidRequest("bad model"), UpstreamFailed("down")])
        for _ in range(5):
            with pytest.raises(InvalidRequest, match="bad model"):
                await cache.fetch("k", compute)
        assert compute.calls == 1
        await asyncio.sleep(30)
        with pytest.raises(UpstreamFailed):
            await cache.fetch("k", compute)
        assert await cache.fetch("k", compute) == (3, "miss")
        statistics = cache.statistics()
        assert (statistics.negative_hits, statistics.failures) == (4, 2)

    run(main())


def test_invalidation_by_pattern_and_by_tag_forgets_what_it_names() -> None:
    async def main() -> None:
        cache: CacheLayer[int] = CacheLayer()
        for key, tags in (("user:1:a", ["x"]), ("user:2:a", ["x", "y"]), ("other", ["y"])):
            await cache.fetch(key, lambda: 1, tags=tags)
        assert await cache.invalidate("user:1:*") == 1
        assert await held(cache, "user:1:a") is None
        assert await cache.invalidate(tag="x") == 1
        assert [await held(cache, k) for k in ("user:2:a", "other")] == [None, 1]
        assert await cache.invalidate("*", everything=True) == 1

    run(main())


def test_what_was_being_computed_at_an_invalidation_is_not_stored_nor_joined() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer()
        compute = Computing(takes_s=1)
        early = asyncio.create_task(cache.fetch("k", compute))
        await asyncio.sleep(0.5)
        cache.invalidate("k")
        late = await cache.fetch("k", compute)
        assert (await early, late) == ((1, "miss"), (2, "miss"))
        assert await held(cache, "k") == 2

    run(main())


@pytest.mark.parametrize("pattern", ["*", "**", "?*", "???"])
def test_a_pattern_of_mere_wildcards_needs_the_flag(pattern: str) -> None:
    async def main() -> None:
        cache: CacheLayer[int] = CacheLayer()
        await cache.fetch("abc", lambda: 1)
        with pytest.raises(PatternTooBroad, match="pass everything=True"):
            cache.invalidate(pattern)
        assert await held(cache, "abc") == 1
        assert await cache.invalidate(pattern, everything=True) == 1

    run(main())


def test_bad_input_is_refused_in_one_line_that_says_what_to_do() -> None:
    async def main() -> None:
        cache: CacheLayer[int] = CacheLayer()
        for key, message in (
            ("k" * 1_000_000, "has 1,000,000 characters, at most 1,024 are kept"),
            ("", "the cache key is empty"),
            (17, "a cache key is a string, not int"),
        ):
            with pytest.raises(InvalidCacheKey, match=message) as raised:
                await cache.fetch(key, lambda: 1)  # type: ignore[arg-type]
            assert "\n" not in str(raised.value)
            assert len(str(raised.value)) < 200
        for ttl in (-1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=r"ttl is .*: expected seconds, zero or more"):
                await cache.fetch("k", lambda: 1, ttl)
        with pytest.raises(ValueError, match="ttl_seconds is -5"):
            CacheLayer(ttl_seconds=-5)
        with pytest.raises(ValueError, match="refresh_ahead is 1"):
            CacheLayer(refresh_ahead=1)
        with pytest.raises(ValueError, match="max_bytes is 0"):
            CacheLayer(max_bytes=0)
        with pytest.raises(ValueError, match="a pattern or a tag"):
            cache.invalidate()
        with pytest.raises(ValueError, match="the pattern is empty"):
            cache.invalidate("")
        with pytest.raises(ValueError, match=r"'\[' is not closed"):
            cache.invalidate("a[bc")

    run(main())


def test_each_look_up_is_counted_once() -> None:
    async def main() -> None:
        cache: CacheLayer[object] = CacheLayer(ttl_seconds=5)
        compute = Computing(fails=[None, UpstreamFailed("x")])
        await asyncio.gather(*(cache.fetch("k", compute) for _ in range(4)))
        await cache.fetch("k", compute)
        with pytest.raises(UpstreamFailed):
            await cache.fetch("other", compute)
        statistics = cache.statistics()
        assert statistics.lookups == 6
        assert (statistics.misses, statistics.coalesced, statistics.l1_hits) == (1, 3, 1)
        assert (statistics.failures, statistics.computations) == (1, 2)
        assert statistics.hit_ratio == pytest.approx(4 / 6)

    run(main())
