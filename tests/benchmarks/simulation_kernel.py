"""Requests per CPU second of M/M/8: plain asyncio code on the kernel against textbook SimPy.

Both models draw their variates alike, from a generator of their own with the same seed, so they
serve the same requests at the same instants: the mean waits must be equal.
Pairs of runs alternate within one process and the medians are told.

    PYTHONPATH=. python tests/benchmarks/simulation_kernel.py [pairs] [requests]
"""

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Callable
from random import Random

import simpy

from simulation.kernel import run

ARRIVALS_PER_S = 50.0
MEAN_SERVICE_S = 0.1
SERVERS = 8


def textbook_simpy(requests: int, seed: int) -> float:
    """The mean wait in seconds, as SimPy's documentation writes a queue with several servers."""
    rng = Random(seed)
    waited_s = 0.0

    def request(env: simpy.Environment, servers: simpy.Resource, service_s: float):  # type: ignore[no-untyped-def]
        nonlocal waited_s
        arrived_s = env.now
        with servers.request() as slot:
            yield slot
            waited_s += env.now - arrived_s
            yield env.timeout(service_s)

    def source(env: simpy.Environment, servers: simpy.Resource):  # type: ignore[no-untyped-def]
        for _ in range(requests):
            yield env.timeout(rng.expovariate(ARRIVALS_PER_S))
            env.process(request(env, servers, rng.expovariate(1 / MEAN_SERVICE_S)))

    env = simpy.Environment()
    env.process(source(env, simpy.Resource(env, SERVERS)))
    env.run()
    return waited_s / requests


def plain_asyncio(requests: int, seed: int, in_group: bool = False) -> float:
    """The mean wait in seconds, as anybody writes it in asyncio, one task a request.

    With in_group the tasks are those of a TaskGroup, whose own book-keeping is added.
    """
    rng = Random(seed)
    waited_s = 0.0
    unfinished = requests

    async def request(
        servers: asyncio.Semaphore, all_done: asyncio.Event, service_s: float
    ) -> None:
        nonlocal waited_s, unfinished
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        async with servers:
            waited_s += loop.time() - arrived_s
            await asyncio.sleep(service_s)
        unfinished -= 1
        if not unfinished:
            all_done.set()

    async def main() -> None:
        servers, all_done = asyncio.Semaphore(SERVERS), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            create_task = group.create_task if in_group else asyncio.create_task
            for _ in range(requests):
                await asyncio.sleep(rng.expovariate(ARRIVALS_PER_S))
                service_s = rng.expovariate(1 / MEAN_SERVICE_S)
                create_task(request(servers, all_done, service_s))
            await all_done.wait()

    run(main())
    return waited_s / requests


def plain_asyncio_in_a_group(requests: int, seed: int) -> float:
    """plain_asyncio with a TaskGroup."""
    return plain_asyncio(requests, seed, in_group=True)


def cpu_s(model: Callable[[int, int], float], requests: int, seed: int) -> tuple[float, float]:
    """CPU seconds of one run and its mean wait."""
    gc.collect()
    started_s = time.process_time()
    mean_wait_s = model(requests, seed)
    return time.process_time() - started_s, mean_wait_s


def compare(pairs: int = 7, requests: int = 30_000) -> dict[str, tuple[float, float]]:
    """Per model: CPU time per request in µs, and SimPy's CPU time over the model's (medians)."""
    models = (textbook_simpy, plain_asyncio, plain_asyncio_in_a_group)
    for model in models:
        cpu_s(model, requests // 10, 0)
    spent_s: dict[str, list[float]] = {model.__name__: [] for model in models}
    for seed in range(pairs):
        waits_s = []
        for model in models:
            model_cpu_s, mean_wait_s = cpu_s(model, requests, seed)
            spent_s[model.__name__].append(model_cpu_s)
            waits_s.append(mean_wait_s)
        if max(waits_s) - min(waits_s) > 1e-9:
            raise AssertionError(f"the models differ: mean waits {waits_s}")
    simpy_s = spent_s[textbook_simpy.__name__]
    return {
        name: (
            statistics.median(times) / requests * 1e6,
            statistics.median(a / b for a, b in zip(simpy_s, times, strict=True)),
        )
        for name, times in spent_s.items()
    }


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}, M/M/8, CPU time per request, SimPy's over the model's")
    for name, (us, ratio) in compare(*map(int, sys.argv[1:])).items():
        print(f"{name:26} {us:6.2f} µs  {ratio:.3f}")
