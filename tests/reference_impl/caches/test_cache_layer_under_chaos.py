"""Many look-ups of few keys over three processes, with failures, cancellations, outages and invalidations by luck.

Whatever happens: every look-up ends; what it returns was computed for its key, and after the last invalidation that was
complete before it began; nothing is left behind; and the store is used again when it is back.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.shared_level import SharedLevel
from reference_impl.errors import UpstreamFailed
from simulation.kernel import run
from simulation.models.cache_server import CacheServer, VirtualStore

KEYS = 4
PROCESSES = 3
LOOK_UPS = 300
CHANGES = 10
OUTAGES = 2
SPAN_S = 30.0


class World:
    """Three processes with a cache over one server, and the truth behind them: a version by key."""

    def __init__(self, seed: int, *, outages: bool) -> None:
        self.luck = Random(seed)
        self.outages = outages
        self.server = CacheServer(seed=seed)
        self.version = [0] * KEYS
        # What no look-up that begins now may fall behind. While the store is away, others cannot hear of a change.
        self.certain = [0] * KEYS
        self.layers: list[CacheLayer[list[int]]] = [
            CacheLayer(
                ttl_seconds=3,
                shared=SharedLevel(VirtualStore(self.server, f"p{n}"), name=f"p{n}", lease_s=2),
                refresh_ahead=0.2,
            )
            for n in range(PROCESSES)
        ]

    async def compute(self, key: int) -> list[int]:
        version = self.version[key]
        await asyncio.sleep(self.luck.expovariate(1 / 0.5))
        if self.luck.random() < 0.2:
            raise UpstreamFailed("by luck")
        return [key, version]

    async def look_up(self) -> None:
        await asyncio.sleep(self.luck.uniform(0, SPAN_S))
        layer, key = self.luck.choice(self.layers), self.luck.randrange(KEYS)
        at_least = self.certain[key]
        try:
            async with asyncio.timeout(self.luck.choice([0.1, 0.5, 60])):
                value, _ = await layer.fetch(f"k{key}", lambda: self.compute(key))
        except (UpstreamFailed, TimeoutError):
            return
        assert value[0] == key
        assert self.outages or value[1] >= at_least

    async def change(self) -> None:
        await asyncio.sleep(self.luck.uniform(0, SPAN_S))
        key = self.luck.randrange(KEYS)
        self.version[key] += 1
        version = self.version[key]
        await self.luck.choice(self.layers).invalidate(f"k{key}")
        await asyncio.sleep(0.001)  # the announcement is under way
        self.certain[key] = max(self.certain[key], version)

    async def outage(self) -> None:
        await asyncio.sleep(self.luck.uniform(0, SPAN_S - 5))
        self.server.fail("refusing" if self.luck.random() < 0.5 else "hanging")
        await asyncio.sleep(self.luck.uniform(0.1, 4))
        self.server.recover()

    async def play(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(LOOK_UPS):
                group.create_task(self.look_up())
            for _ in range(CHANGES):
                group.create_task(self.change())
            for _ in range(OUTAGES if self.outages else 0):
                group.create_task(self.outage())

    async def check_what_is_left(self) -> None:
        await asyncio.sleep(SPAN_S)
        for number, layer in enumerate(self.layers):
            statistics = layer.statistics()
            assert statistics.in_progress == 0
            assert statistics.shared is not None
            assert statistics.shared.invalidations_pending == 0
            _, source = await layer.fetch("at last", lambda: [1])
            assert source == ("miss" if number == 0 else "l2")


@pytest.mark.parametrize("outages", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_whatever_happens_answers_are_right_and_nothing_is_left_behind(
    seed: int, outages: bool
) -> None:
    async def main() -> None:
        world = World(seed, outages=outages)
        await world.play()
        await world.check_what_is_left()
        for layer in world.layers:
            await layer.aclose()

    run(main())
