"""One contract for every provider of instances: worker processes on real loops, and models in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from reference_impl.deployment import InstanceSpec
from reference_impl.instances.instance import Instance
from reference_impl.instances.port import InstanceMetrics, InstanceProvider, InstanceStatus
from reference_impl.overload.jitter import hashed_uniform
from simulation.kernel import run
from simulation.models.cpu import Host, VirtualCpu
from simulation.models.instance import VirtualProvider
from simulation.models.network import Link
from simulation.scenario.distributions import Constant
from simulation.scenario.schema import ProcessCpu
from tests.reference_impl.instances.child_program import (
    LIMIT_S,
    children,
    forget_other_children,
    provider_of,
    write_program,
)
from tests.reference_impl.instances.scripted_provider import SleepingProcessor

Opened = AbstractAsyncContextManager[InstanceProvider]
Work = Callable[[InstanceProvider], Coroutine[Any, Any, None]]

BOOT_S = 0.3
CAPACITY = 4
# uvloop's clock steps by a millisecond.
CLOCK_STEP_S = 0.001


class World:
    """Where the contract is tried: what runs a coroutine, and what opens a provider inside."""

    def __init__(
        self, run_main: Callable[[Coroutine[Any, Any, None]], None], opened: Callable[[], Opened]
    ) -> None:
        self._run_main = run_main
        self._opened = opened

    def run(self, work: Work) -> None:
        async def main() -> None:
            async with asyncio.timeout(LIMIT_S), self._opened() as provider:
                await work(provider)

        self._run_main(main())


@asynccontextmanager
async def virtual_provider() -> AsyncIterator[InstanceProvider]:
    def make(instance_id: str) -> tuple[Instance, VirtualCpu]:
        cpu = VirtualCpu(f"{instance_id} cpu", ProcessCpu(), Host(1))
        instance = Instance(instance_id, SleepingProcessor(1.0), compute=cpu, concurrency=CAPACITY)
        return instance, cpu

    spec = InstanceSpec(boot_s=BOOT_S, concurrency=CAPACITY, heartbeat_s=1.0)
    link = Link("gateway-instance", Constant(value=0.001), seed=1)
    provider = VirtualProvider(spec, make, link, hashed_uniform(1), lambda _: None)
    try:
        yield provider
    finally:
        await provider.aclose()


@pytest.fixture(params=["virtual", "processes, asyncio", "processes, uvloop"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    if request.param == "virtual":
        return World(run, virtual_provider)
    program = write_program(tmp_path)
    forget_other_children()
    factory = uvloop.new_event_loop if "uvloop" in request.param else asyncio.new_event_loop

    def run_live(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main)
        assert children() == [], "a child process was left behind"

    return World(run_live, lambda: provider_of(program, boot_s=BOOT_S))


def ids(provider: InstanceProvider) -> list[str]:
    return [report.instance_id for report in provider.metrics()]


def test_a_started_instance_has_its_id_its_capacity_and_a_port(world: World) -> None:
    async def work(provider: InstanceProvider) -> None:
        running = await provider.start("instance-1")
        assert (running.instance_id, running.capacity) == ("instance-1", CAPACITY)
        assert callable(running.port.complete)
        assert running.ended is None or not running.ended.done()

    world.run(work)


def test_an_instance_is_ready_no_earlier_than_its_boot_time(world: World) -> None:
    async def work(provider: InstanceProvider) -> None:
        from_s = asyncio.get_running_loop().time()
        await provider.start("instance-1")
        assert asyncio.get_running_loop().time() - from_s >= BOOT_S - CLOCK_STEP_S

    world.run(work)


def test_instances_boot_side_by_side(world: World) -> None:
    async def work(provider: InstanceProvider) -> None:
        running = await asyncio.gather(*(provider.start(f"instance-{n}") for n in range(3)))
        assert sorted(ids(provider)) == [r.instance_id for r in running]

    world.run(work)


def test_every_ready_instance_shows_in_the_metrics_and_no_other(world: World) -> None:
    async def work(provider: InstanceProvider) -> None:
        assert ids(provider) == []
        start = asyncio.create_task(provider.start("instance-1"))
        await asyncio.sleep(0)
        assert ids(provider) == []
        await start
        assert provider.metrics() == [
            InstanceMetrics("instance-1", InstanceStatus.HEALTHY, capacity=CAPACITY)
        ]
        await provider.stop("instance-1", LIMIT_S)
        assert ids(provider) == []

    world.run(work)


def test_a_stop_tells_nobody_that_the_instance_died(world: World) -> None:
    async def work(provider: InstanceProvider) -> None:
        running = await provider.start("instance-1")
        await provider.stop("instance-1", LIMIT_S)
        assert running.ended is None or running.ended.cancelled()

    world.run(work)


def test_stopping_what_has_ended_or_never_was_is_without_effect(world: World) -> None:
    async def work(provider: InstanceProvider) -> None:
        await provider.stop("instance-9", 0.0)
        await provider.start("instance-1")
        await provider.stop("instance-1", LIMIT_S)
        await provider.stop("instance-1", LIMIT_S)

    world.run(work)


def test_a_cancelled_start_leaves_nothing_behind(world: World) -> None:
    async def work(provider: InstanceProvider) -> None:
        start = asyncio.create_task(provider.start("instance-1"))
        await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert ids(provider) == []
        assert children() == []

    world.run(work)


def test_closing_ends_every_instance(world: World) -> None:
    async def work(provider: InstanceProvider) -> None:
        await asyncio.gather(*(provider.start(f"instance-{n}") for n in range(3)))
        await provider.aclose()
        assert ids(provider) == []
        assert children() == []

    world.run(work)
