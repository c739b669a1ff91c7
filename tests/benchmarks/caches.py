"""The caches beside their peers, in one process and one run: cashews in memory, redis-py with hiredis, Che's approximation.

    python -m tests.benchmarks.caches [--json] [--rounds 7]

Rounds of ours and of the peer's alternate and the medians are told, so that a neighbour on the machine meets both. Level 1 is
measured in CPU time. Level 2 is measured by the clock, because part of it is another process; its peer returns the bytes
that it was given, while ours are found, checked for their age and decoded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from cashews import Cache
from redis.asyncio import Redis
from scipy.optimize import brentq

from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.redis_store import RedisStore
from reference_impl.caches.shared_level import SharedLevel
from reference_impl.live.loop import run_live
from tests.servers.valkey import ValkeyProcess

L1_HITS_A_ROUND = 20_000
L2_HITS_A_ROUND = 1_000
AT_ONCE = 50
VALUE = {"id": "msg_1", "text": "x" * 900, "usage": {"input": 10, "output": 200}}  # 1 KB of JSON

Work = Callable[[], Awaitable[None]]


async def alternate(
    ours: Work, peers: Work, rounds: int, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Median seconds of ours and of the peer's, and the median over rounds of peer's / ours."""
    taken: list[tuple[float, float]] = []
    await ours()
    await peers()
    for number in range(rounds):
        round_s = {}
        for work in (ours, peers) if number % 2 else (peers, ours):
            began_s = clock()
            await work()
            round_s[work] = clock() - began_s
        taken.append((round_s[ours], round_s[peers]))
    return (
        statistics.median(own for own, _ in taken),
        statistics.median(other for _, other in taken),
        statistics.median(other / own for own, other in taken),
    )


async def level_1(rounds: int) -> dict[str, float]:
    layer: CacheLayer[dict[str, Any]] = CacheLayer()
    cashews = Cache()
    cashews.setup("mem://")
    await cashews.set("key", VALUE, expire=3600)

    async def compute() -> dict[str, Any]:
        return VALUE

    async def ours() -> None:
        for _ in range(L1_HITS_A_ROUND):
            await layer.get_or_compute("key", compute)

    async def peers() -> None:
        for _ in range(L1_HITS_A_ROUND):
            await cashews.get("key")

    own_s, peer_s, ratio = await alternate(ours, peers, rounds, time.process_time)
    await cashews.close()
    return {
        "l1_hits_per_s": L1_HITS_A_ROUND / own_s,
        "cashews_hits_per_s": L1_HITS_A_ROUND / peer_s,
        "l1_ratio_to_cashews": ratio,
    }


async def level_2(rounds: int, url: str) -> dict[str, float]:
    shared: SharedLevel[dict[str, Any]] = SharedLevel(
        RedisStore(url), name="benchmark", timeout_s=5.0
    )
    layer: CacheLayer[dict[str, Any]] = CacheLayer(shared=shared, l1_ttl_seconds=0)
    bare = Redis.from_url(url)
    keys = [f"key-{n}" for n in range(AT_ONCE)]
    for key in keys:
        await layer.fetch(key, lambda: VALUE)
        await bare.set(f"bare:{key}", json.dumps(VALUE))

    async def ours() -> None:
        for number in range(L2_HITS_A_ROUND):
            _, source = await layer.fetch(keys[number % AT_ONCE], lambda: VALUE)
            assert source == "l2"

    async def peers() -> None:
        for number in range(L2_HITS_A_ROUND):
            assert await bare.get(f"bare:{keys[number % AT_ONCE]}")

    async def ours_at_once() -> None:
        for _ in range(L2_HITS_A_ROUND // AT_ONCE):
            await asyncio.gather(*(layer.fetch(key, lambda: VALUE) for key in keys))

    async def peers_at_once() -> None:
        for _ in range(L2_HITS_A_ROUND // AT_ONCE):
            await asyncio.gather(*(bare.get(f"bare:{key}") for key in keys))

    own_s, peer_s, ratio = await alternate(ours, peers, rounds, time.perf_counter)
    own_at_once_s, peer_at_once_s, ratio_at_once = await alternate(
        ours_at_once, peers_at_once, rounds, time.perf_counter
    )
    await layer.aclose()
    await bare.aclose()
    return {
        "l2_hits_per_s": L2_HITS_A_ROUND / own_s,
        "redis_py_gets_per_s": L2_HITS_A_ROUND / peer_s,
        "l2_ratio_to_redis_py": ratio,
        "l2_hits_per_s_50_at_once": L2_HITS_A_ROUND / own_at_once_s,
        "redis_py_gets_per_s_50_at_once": L2_HITS_A_ROUND / peer_at_once_s,
        "l2_ratio_to_redis_py_50_at_once": ratio_at_once,
    }


def che_hit_ratio(popularity: npt.NDArray[np.float64], entries: int) -> float:
    """Hit ratio of LRU under independent references (Che, Tung and Wang, IEEE JSAC 20(7), 2002)."""

    def occupied(characteristic_time: float) -> float:
        return float(np.sum(-np.expm1(-popularity * characteristic_time)))

    characteristic_time = brentq(lambda t: occupied(t) - entries, 1.0, 1e9)
    return float(np.sum(popularity * -np.expm1(-popularity * characteristic_time)))


async def zipf(items: int = 10_000, exponent: float = 0.9, entries: int = 500) -> dict[str, float]:
    popularity = np.arange(1, items + 1, dtype=np.float64) ** -exponent
    popularity /= popularity.sum()
    warm, measured = 20_000, 300_000
    draws = np.random.Generator(np.random.Philox(key=7)).choice(
        items, size=warm + measured, p=popularity
    )
    layer: CacheLayer[int] = CacheLayer(max_entries=entries)
    names = [str(item) for item in range(items)]
    hits = 0
    for number, item in enumerate(draws):
        _, source = await layer.fetch(names[item], lambda: 0)
        hits += number >= warm and source == "l1"
    expected = che_hit_ratio(popularity, entries)
    return {
        "zipf_hit_ratio": hits / measured,
        "che_hit_ratio": expected,
        "zipf_hit_ratio_error": abs(hits / measured - expected),
    }


async def stampede(at_once: int = 1000) -> dict[str, float]:
    computes = {"ours": 0, "cashews": 0}

    def counting(who: str) -> Callable[[], Awaitable[str]]:
        async def compute() -> str:
            computes[who] += 1
            await asyncio.sleep(0.05)
            return "value"

        return compute

    layer: CacheLayer[str] = CacheLayer()
    cashews = Cache()
    cashews.setup("mem://")
    own, peer = counting("ours"), counting("cashews")
    await asyncio.gather(*(layer.get_or_compute("key", own) for _ in range(at_once)))
    await asyncio.gather(
        *(cashews.get_or_set("key", default=peer, expire=60) for _ in range(at_once))
    )
    await cashews.close()
    return {
        "stampede_computes": computes["ours"],
        "stampede_computes_cashews": computes["cashews"],
    }


async def measure(rounds: int, url: str) -> dict[str, float]:
    return {
        **await level_1(rounds),
        **await level_2(rounds, url),
        **await zipf(),
        **await stampede(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (default 7)")
    options = parser.parse_args()
    with ValkeyProcess() as server:
        result = run_live(measure(options.rounds, server.url))
    if options.json:
        print(json.dumps(result))
    else:
        for name, figure in result.items():
            print(f"{name:34} {figure:>14,.4g}")


if __name__ == "__main__":
    main()
