"""The virtual Redis as a station: its thread is a queue, its network takes its time, and it can be away."""

from __future__ import annotations

import asyncio

import pytest

from reference_impl.caches.port import Invalidation, StoreUnavailable
from simulation.kernel import run
from simulation.models.cache_server import CacheServer, VirtualStore
from simulation.scenario.distributions import Constant, LogNormal


def test_a_command_takes_two_legs_and_the_servers_time() -> None:
    async def main() -> None:
        store = VirtualStore(CacheServer(one_way=Constant(value=0.01), service_s=0.001), "a")
        await store.get("k")
        assert asyncio.get_running_loop().time() == pytest.approx(0.021)

    run(main())


def test_commands_of_all_processes_wait_for_one_thread() -> None:
    async def main() -> None:
        server = CacheServer(one_way=Constant(value=0), service_s=0.1)
        stores = [VirtualStore(server, f"p{n}") for n in range(4)]
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(store.get("k") for store in stores))
        assert loop.time() == pytest.approx(0.4)
        await asyncio.sleep(0.6)
        sample = server.sample(loop.time(), 0.0)
        assert (sample.station, sample.arrivals, sample.capacity) == ("cache server", 4, 1)
        assert sample.busy_s == pytest.approx(0.4)
        assert sample.queue_length == pytest.approx(0.1 + 0.2 + 0.3)
        assert sample.in_service == pytest.approx(0.4)
        await asyncio.sleep(1)
        assert server.sample(loop.time(), 0.0).arrivals == 0

    run(main())


def test_latencies_are_the_same_for_the_same_seed_and_process_whoever_else_asks() -> None:
    async def main(others: int) -> list[float]:
        server = CacheServer(seed=5, one_way=LogNormal(median=0.001, sigma=0.5), service_s=0)
        store = VirtualStore(server, "mine")
        for n in range(others):
            await VirtualStore(server, f"other-{n}").get("k")
        loop = asyncio.get_running_loop()
        taken_s = []
        for _ in range(20):
            began_s = loop.time()
            await store.get("k")
            taken_s.append(loop.time() - began_s)
        return taken_s

    alone = run(main(0))
    assert len({round(taken_s, 9) for taken_s in alone}) == 20
    assert run(main(3)) == pytest.approx(alone)


def test_a_server_that_refuses_breaks_subscriptions_and_forgets_unless_told_otherwise() -> None:
    async def main() -> None:
        server = CacheServer()
        store = VirtualStore(server, "a")
        heard: list[Invalidation] = []
        ready = asyncio.Event()
        for keeps_data in (True, False):
            await store.put("k", b"v", ttl_s=100)
            ready.clear()
            listening = asyncio.create_task(store.listen(heard.append, ready.set))
            await ready.wait()
            server.fail("refusing", keeps_data=keeps_data)
            with pytest.raises(StoreUnavailable, match="connection lost"):
                await listening
            with pytest.raises(StoreUnavailable, match="connection refused"):
                await store.get("k")
            server.recover()
            assert (await store.get("k") is not None) == keeps_data
        assert heard == []

    run(main())


def test_a_server_that_hangs_answers_when_it_is_back() -> None:
    async def main() -> None:
        server = CacheServer()
        store = VirtualStore(server, "a")
        await store.put("k", b"v", ttl_s=100)
        server.fail("hanging")
        reading = asyncio.create_task(store.get("k"))
        await asyncio.sleep(10)
        assert not reading.done()
        server.recover()
        stored = await reading
        assert stored is not None
        assert stored.fresh_s == pytest.approx(90, abs=0.01)

    run(main())


def test_a_negative_service_time_is_refused() -> None:
    with pytest.raises(ValueError, match="service_s is -1"):
        CacheServer(service_s=-1)
