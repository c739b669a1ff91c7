"""Several cache layers ("processes") over one virtual server, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

import pytest

from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.port import Invalidation, StoreUnavailable
from reference_impl.caches.shared_level import SharedLevel
from reference_impl.caches.statistics import SharedLevelStatistics
from reference_impl.errors import UpstreamFailed
from simulation.kernel import run
from simulation.models.cache_server import CacheServer, VirtualStore
from tests.reference_impl.caches.computing import Computing


def process(
    server: CacheServer,
    name: str,
    *,
    store: VirtualStore | None = None,
    l1_ttl_seconds: float = 60,
    stale_if_error_seconds: float = 0,
    refresh_ahead: float = 0,
    lease_wait_s: float = 60,
) -> CacheLayer[object]:
    shared: SharedLevel[object] = SharedLevel(
        store or VirtualStore(server, name), name=name, lease_s=5, lease_wait_s=lease_wait_s
    )
    return CacheLayer(
        shared=shared,
        l1_ttl_seconds=l1_ttl_seconds,
        stale_if_error_seconds=stale_if_error_seconds,
        refresh_ahead=refresh_ahead,
    )


class Deaf(VirtualStore):
    """A connection on which no announcement ever arrives."""

    async def listen(
        self, on_invalidation: Callable[[Invalidation], None], on_ready: Callable[[], None]
    ) -> None:
        raise StoreUnavailable("no subscription")


def shared_statistics(layer: CacheLayer[object]) -> SharedLevelStatistics:
    statistics = layer.statistics().shared
    assert statistics is not None
    return statistics


async def close(*layers: CacheLayer[object]) -> None:
    for layer in layers:
        await layer.aclose()


def test_a_value_of_one_process_is_a_hit_of_level_2_in_another_and_then_of_level_1() -> None:
    async def main() -> None:
        server = CacheServer()
        a, b = process(server, "a"), process(server, "b")
        compute = Computing(takes_s=1, value={"text": "x", "n": [1, 2]})
        assert (await a.fetch("k", compute))[1] == "miss"
        assert await b.fetch("k", compute) == ({"text": "x", "n": [1, 2]}, "l2")
        assert (await b.fetch("k", compute))[1] == "l1"
        assert compute.calls == 1
        await close(a, b)

    run(main())


def test_concurrent_misses_over_four_processes_compute_once() -> None:
    async def main() -> None:
        server = CacheServer()
        layers = [process(server, f"p{n}") for n in range(4)]
        compute = Computing(takes_s=30, value="v")  # six leases long
        results = await asyncio.gather(*(layers[n % 4].fetch("k", compute) for n in range(1000)))
        assert compute.calls == 1
        assert Counter(results) == {("v", "miss"): 1, ("v", "coalesced"): 999}
        waits = [shared_statistics(layer).lease_waits for layer in layers]
        assert sorted(waits) == [0, 1, 1, 1]
        await close(*layers)

    run(main())


def test_a_failed_or_cancelled_computation_lets_another_process_take_over_at_once() -> None:
    async def main() -> None:
        server = CacheServer()
        a, b = process(server, "a"), process(server, "b")
        for key, compute in (
            ("fails", Computing(takes_s=1, fails=[UpstreamFailed("x")])),
            ("cancelled", Computing(takes_s=1)),
        ):
            began_s = asyncio.get_running_loop().time()
            first = asyncio.create_task(a.fetch(key, compute))
            await asyncio.sleep(0.5)
            second = asyncio.create_task(b.fetch(key, compute))
            await asyncio.sleep(0.5)
            if key == "cancelled":
                first.cancel()
            assert await second == (2, "miss")
            assert asyncio.get_running_loop().time() - began_s < 2.3
            await asyncio.gather(first, return_exceptions=True)
        await close(a, b)

    run(main())


def test_a_process_that_died_while_computing_is_replaced_when_its_lease_ends() -> None:
    async def main() -> None:
        server = CacheServer()
        layer = process(server, "alive")
        dead = VirtualStore(server, "dead")
        assert await dead.take_lease("k", "dead/1", 5)
        compute = Computing(takes_s=1)
        assert await layer.fetch("k", compute) == (1, "miss")
        assert 6 < asyncio.get_running_loop().time() < 6.3
        await close(layer)

    run(main())


def test_the_wait_for_another_process_is_bounded() -> None:
    async def main() -> None:
        server = CacheServer()
        layer = process(server, "impatient", lease_wait_s=3)
        assert await VirtualStore(server, "slow").take_lease("k", "slow/1", 1000)
        assert await layer.fetch("k", Computing(takes_s=1)) == (1, "miss")
        assert 4 < asyncio.get_running_loop().time() < 4.3
        await close(layer)

    run(main())


def test_an_invalidation_reaches_the_memory_of_every_process() -> None:
    async def main() -> None:
        server = CacheServer()
        layers = [process(server, f"p{n}") for n in range(4)]
        for layer in layers:
            await layer.fetch("user:1", lambda: "old", tags=["users"])
        asked_s = asyncio.get_running_loop().time()
        assert await layers[0].invalidate("user:*") == 1
        await asyncio.sleep(0.001)
        assert [await layer.find("user:1") for layer in layers] == [None] * 4
        assert asyncio.get_running_loop().time() - asked_s < 0.1
        for layer in layers:
            await layer.fetch("user:1", lambda: "new", tags=["users"])
        await layers[3].invalidate(tag="users")
        await asyncio.sleep(0.001)
        assert [await layer.find("user:1") for layer in layers] == [None] * 4
        await close(*layers)

    run(main())


def test_a_tag_reaches_a_process_that_read_the_value_without_naming_it() -> None:
    async def main() -> None:
        server = CacheServer()
        a, b = process(server, "a"), process(server, "b")
        await a.fetch("k", lambda: 1, tags=["t"])
        assert (await b.fetch("k", lambda: 2))[1] == "l2"
        await a.invalidate(tag="t")
        await asyncio.sleep(0.001)
        assert await b.find("k") is None
        await close(a, b)

    run(main())


def test_what_another_process_computes_at_an_invalidation_is_not_stored() -> None:
    async def main() -> None:
        server = CacheServer()
        a, b = process(server, "a"), process(server, "b", store=Deaf(server, "b"))
        early = asyncio.create_task(b.fetch("k", Computing(takes_s=2, value="old")))
        await asyncio.sleep(1)
        await a.invalidate("k")
        assert await early == ("old", "miss")
        assert await a.fetch("k", lambda: "new") == ("new", "miss")
        statistics = shared_statistics(b)
        assert (statistics.stored, statistics.refused) == (0, 1)
        await close(a, b)

    run(main())


def test_a_look_up_beside_an_invalidation_leaves_nothing_old_behind() -> None:
    async def main() -> None:
        server = CacheServer()
        layer = process(server, "a")
        await layer.fetch("k", lambda: "old")
        told = layer.invalidate("k")
        # Nobody has awaited the store yet: it may still answer with the old value.
        await layer.fetch("k", lambda: "new")
        await told
        assert await layer.fetch("k", lambda: "new") == ("new", "miss")
        await close(layer)

    run(main())


@pytest.mark.parametrize("steps", range(1, 12))
def test_a_look_up_cancelled_at_any_step_leaves_no_lease_behind(steps: int) -> None:
    async def main() -> None:
        server = CacheServer()
        a, b = process(server, "a"), process(server, "b")
        look_up = asyncio.create_task(a.fetch("k", Computing(takes_s=0.0001)))
        await asyncio.sleep(steps * 45e-6)  # one leg of a message to the store
        look_up.cancel()
        await asyncio.gather(look_up, return_exceptions=True)
        began_s = asyncio.get_running_loop().time()
        await b.fetch("k", Computing(takes_s=0.0001))
        assert asyncio.get_running_loop().time() - began_s < 0.1
        await close(a, b)

    run(main())


def test_a_lost_invalidation_heals_with_the_ttl_of_level_1() -> None:
    async def main() -> None:
        server = CacheServer()
        a, b = (
            process(server, "a"),
            process(server, "b", store=Deaf(server, "b"), l1_ttl_seconds=30),
        )
        await a.fetch("k", lambda: "old")
        await b.fetch("k", lambda: "old")
        await a.invalidate("k")
        await a.fetch("k", lambda: "new")
        assert await b.fetch("k", lambda: "new") == ("old", "l1")
        await asyncio.sleep(30)
        assert await b.fetch("k", lambda: "newer") == ("new", "l2")
        await close(a, b)

    run(main())


def test_level_1_serves_no_longer_than_level_2_promised() -> None:
    async def main() -> None:
        server = CacheServer()
        a, b = process(server, "a"), process(server, "b")
        await a.fetch("k", lambda: 1, 10)
        await asyncio.sleep(9)
        assert await b.fetch("k", lambda: 2, 10) == (1, "l2")
        await asyncio.sleep(0.9)
        assert await b.fetch("k", lambda: 2, 10) == (1, "l1")
        await asyncio.sleep(0.2)
        assert await b.fetch("k", lambda: 2, 10) == (2, "miss")
        await close(a, b)

    run(main())


def test_a_stale_value_of_level_2_stands_in_for_a_failure() -> None:
    async def main() -> None:
        server = CacheServer()
        a = process(server, "a", stale_if_error_seconds=100)
        b = process(server, "b", stale_if_error_seconds=100)
        await a.fetch("k", lambda: "kept", 10)
        await asyncio.sleep(50)
        failing = Computing(takes_s=1, fails=[UpstreamFailed("down")] * 9)
        assert await b.fetch("k", failing, 10) == ("kept", "l2")
        await asyncio.sleep(60)
        with pytest.raises(UpstreamFailed):
            await b.fetch("k", failing, 10)
        await close(a, b)

    run(main())


def test_a_refresh_ahead_of_expiry_is_computed_by_one_process() -> None:
    async def main() -> None:
        server = CacheServer()
        layers = [process(server, f"p{n}", refresh_ahead=0.2, l1_ttl_seconds=5) for n in range(4)]
        compute = Computing(takes_s=10)
        await layers[0].fetch("k", compute, 100)
        await asyncio.sleep(85)
        for _ in range(2):  # from level 2 into each memory, then a hit there
            assert [(await layer.fetch("k", compute, 100))[0] for layer in layers] == [1] * 4
        await asyncio.sleep(11)
        assert [(await layer.fetch("k", compute, 100))[0] for layer in layers] == [2] * 4
        assert compute.calls == 2
        await close(*layers)

    run(main())


def test_a_value_that_cannot_be_serialised_is_served_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        server = CacheServer()
        a, b = process(server, "a"), process(server, "b")
        value = Computing()  # an object of a class that msgspec does not know
        with caplog.at_level(logging.WARNING):
            for key in ("k1", "k2"):
                assert await a.fetch(key, lambda: value) == (value, "miss")
                assert await a.fetch(key, lambda: value) == (value, "l1")
        (line,) = [record.getMessage() for record in caplog.records]
        assert "a value of type Computing cannot be shared" in line
        assert "hand a codec to the cache" in line
        assert (await b.fetch("k1", lambda: 1))[1] == "miss"
        await close(a, b)

    run(main())


def test_bytes_of_another_codec_are_a_miss() -> None:
    async def main() -> None:
        server = CacheServer()
        store = VirtualStore(server, "other")
        layer = process(server, "a")
        for payload in (b"", b"\x09what", b"\x01\xc1", b"\x02not deflated"):
            await store.put("k", payload, ttl_s=100)
            assert await layer.find("k") is None
        assert await layer.fetch("k", lambda: "own") == ("own", "miss")
        await close(layer)

    run(main())


@pytest.mark.parametrize("outage", ["refusing", "hanging"])
def test_no_look_up_waits_longer_for_a_store_that_is_away_than_stated(outage: str) -> None:
    async def main() -> None:
        server = CacheServer()
        layer = process(server, "a")
        loop = asyncio.get_running_loop()
        server.fail(outage)  # type: ignore[arg-type]
        for n in range(40):
            await asyncio.sleep(0.02)
            began_s = loop.time()
            assert await layer.fetch(f"k{n}", lambda: n) == (n, "miss")  # noqa: B023 - called at once
            assert loop.time() - began_s <= 0.05 + 1e-9
        statistics = shared_statistics(layer)
        assert statistics.errors <= 5
        assert statistics.breaker == "open"
        await close(layer)

    run(main())


def test_a_store_that_goes_away_between_reading_and_writing_costs_one_time_out() -> None:
    async def main() -> None:
        server = CacheServer()
        layer = process(server, "a")
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        look_up = asyncio.create_task(layer.fetch("k", Computing(takes_s=1)))
        await asyncio.sleep(0.5)
        server.fail("hanging")
        assert await look_up == (1, "miss")
        assert loop.time() - began_s <= 1 + 0.05
        await close(layer)

    run(main())


def test_what_was_invalidated_during_an_outage_is_not_served_after_it() -> None:
    async def main() -> None:
        server = CacheServer()
        a, b = process(server, "a"), process(server, "b")
        await a.fetch("k", lambda: "old")
        server.fail("refusing", keeps_data=True)
        assert await a.invalidate("k") == 0
        statistics = shared_statistics(a)
        assert statistics.invalidations_pending == 1
        assert await a.fetch("k", lambda: "meanwhile", 0) == ("meanwhile", "miss")
        server.recover()
        assert await a.fetch("k", lambda: "before the replay", 0) == ("before the replay", "miss")
        await asyncio.sleep(10)
        assert await b.fetch("k", lambda: "new") == ("new", "miss")
        statistics = shared_statistics(a)
        assert statistics.invalidations_pending == 0
        await close(a, b)

    run(main())


def test_an_evicting_server_loses_the_oldest_and_nothing_fails() -> None:
    async def main() -> None:
        server = CacheServer(max_bytes=20_000)
        layer = process(server, "a", l1_ttl_seconds=0)
        for n in range(100):
            await layer.fetch(f"k{n}", lambda: "x" * 1000)
        assert server.statistics().size_bytes <= 20_000
        assert (await layer.fetch("k99", lambda: "y"))[1] == "l2"
        assert (await layer.fetch("k0", lambda: "y"))[1] == "miss"
        await close(layer)

    run(main())
