"""An instance: concurrency, the bounded queue, retry waits, draining, and its own accounts."""

from __future__ import annotations

import asyncio

import pytest

from reference_impl.errors import (
    ConnectionFailed,
    EndpointUnreachable,
    InvalidRequest,
    NoInstance,
    RateLimited,
    Rejected,
)
from reference_impl.instances.instance import Instance
from reference_impl.instances.port import InstanceStatus
from reference_impl.instances.slots import Slot
from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.telemetry import RequestTrace
from simulation.kernel import run


class TimedProcessor:
    """Takes `service_s` a call; can give its slot back for a while, and fail."""

    def __init__(
        self, service_s: float = 1.0, pause_s: float = 0.0, error: Exception | None = None
    ) -> None:
        self.service_s = service_s
        self.pause_s = pause_s
        self.error = error
        self.at_once = 0
        self.most_at_once = 0
        self.closed = False

    async def _work(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.service_s)
        finally:
            self.at_once -= 1

    async def complete(
        self, call: Call, emit: Emit | None = None, slot: Slot | None = None
    ) -> Completion:
        await self._work()
        if self.pause_s:
            assert slot is not None
            slot.release()
            await asyncio.sleep(self.pause_s)
            await slot.acquire()
            await self._work()
        if self.error is not None:
            raise self.error
        return Completion(Usage())

    async def aclose(self) -> None:
        self.closed = True


def call(request_id: int = 0) -> Call:
    return Call(request_id=request_id, model="m", max_tokens=1, stream=False, trace=RequestTrace())


def test_at_most_the_concurrency_is_served_at_once_and_waits_are_traced() -> None:
    async def main() -> None:
        processor = TimedProcessor()
        instance = Instance("instance-1", processor, concurrency=2, queue_limit=10)
        calls = [call(n) for n in range(6)]
        await asyncio.gather(*(instance.complete(c) for c in calls))
        assert processor.most_at_once == 2
        assert [c.trace.instance_wait_s for c in calls] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
        statistics = instance.statistics()
        assert (statistics.admitted, statistics.succeeded, statistics.in_flight) == (6, 6, 0)

    run(main())


def test_a_call_beyond_the_queue_is_rejected_and_counted_as_an_error() -> None:
    async def main() -> None:
        instance = Instance("instance-1", TimedProcessor(), concurrency=1, queue_limit=1)
        results = await asyncio.gather(
            *(instance.complete(call(n)) for n in range(4)), return_exceptions=True
        )
        assert [type(r) for r in results] == [Completion, Completion, Rejected, Rejected]
        statistics = instance.statistics()
        assert (statistics.succeeded, statistics.rejected, statistics.admitted) == (2, 2, 2)
        assert instance.metrics().error_rate == 0.5

    run(main())


def test_a_slot_serves_another_call_while_its_holder_waits_to_retry() -> None:
    async def main() -> None:
        processor = TimedProcessor(service_s=1.0, pause_s=1.0)
        instance = Instance("instance-1", processor, concurrency=1, queue_limit=10)
        await asyncio.gather(instance.complete(call(0)), instance.complete(call(1)))
        # 0: [0, 1] and [2, 3]; 1: [1, 2] and [3, 4]: the slot is never idle.
        assert asyncio.get_running_loop().time() == 4.0
        assert processor.most_at_once == 1
        sample = instance.sample()
        assert (sample.busy_s, sample.arrivals, sample.completions) == (4.0, 4, 4)

    run(main())


def test_a_cancelled_call_leaves_no_slot_behind_wherever_it_is() -> None:
    async def main() -> None:
        instance = Instance(
            "instance-1", TimedProcessor(1.0, pause_s=1.0), concurrency=1, queue_limit=10
        )
        served, waiting = (asyncio.create_task(instance.complete(call(n))) for n in range(2))
        await asyncio.sleep(0.5)
        waiting.cancel()
        await asyncio.sleep(1.0)  # the other is between its attempts now
        served.cancel()
        await asyncio.gather(served, waiting, return_exceptions=True)
        statistics = instance.statistics()
        assert (statistics.cancelled, statistics.in_flight) == (2, 0)
        assert (statistics.slots.busy, statistics.slots.waiting) == (0, 0)

    run(main())


def test_a_draining_instance_finishes_what_it_has_and_refuses_the_new() -> None:
    async def main() -> None:
        instance = Instance("instance-1", TimedProcessor(), concurrency=1, queue_limit=10)
        accepted = [asyncio.create_task(instance.complete(call(n))) for n in range(3)]
        await asyncio.sleep(0.5)
        drain = asyncio.create_task(instance.drain(10.0))
        await asyncio.sleep(0.0)
        with pytest.raises(NoInstance, match="instance-1 is draining"):
            await instance.complete(call(9))
        assert await drain
        assert asyncio.get_running_loop().time() == 3.0
        assert all(task.done() and task.exception() is None for task in accepted)
        assert instance.statistics().refused == 1

    run(main())


def test_a_drain_that_takes_too_long_says_so() -> None:
    async def main() -> None:
        instance = Instance("instance-1", TimedProcessor(5.0), concurrency=1)
        task = asyncio.create_task(instance.complete(call()))
        await asyncio.sleep(0.0)
        assert not await instance.drain(2.0)
        assert asyncio.get_running_loop().time() == 2.0
        await task
        assert await instance.drain(0.0)

    run(main())


@pytest.mark.parametrize(
    ("error", "error_rate", "status"),
    [
        (RateLimited("slow down"), 1.0, InstanceStatus.HEALTHY),
        (Rejected("no budget"), 1.0, InstanceStatus.HEALTHY),
        (InvalidRequest("no such model"), 0.0, InstanceStatus.HEALTHY),
        (ConnectionFailed("no route"), 1.0, InstanceStatus.DEGRADED),
        (ZeroDivisionError("a bug"), 1.0, InstanceStatus.DEGRADED),
    ],
)
def test_failures_are_told_apart_by_whose_fault_they_are(
    error: Exception, error_rate: float, status: InstanceStatus
) -> None:
    async def main() -> None:
        instance = Instance("instance-1", TimedProcessor(error=error), concurrency=20)
        results = await asyncio.gather(
            *(instance.complete(call(n)) for n in range(20)), return_exceptions=True
        )
        raised = EndpointUnreachable if isinstance(error, ConnectionFailed) else type(error)
        assert [type(result) for result in results] == [raised] * 20
        report = instance.metrics(cpu_usage=0.3, memory_usage=0.1)
        assert (report.error_rate, report.status, report.latency_ms) == (error_rate, status, 1000.0)
        assert (report.cpu_usage, report.memory_usage, report.capacity) == (0.3, 0.1, 20)
        statistics = instance.statistics()
        assert (statistics.failed, statistics.admitted, statistics.slots.busy) == (20, 20, 0)

    run(main())


def test_closing_an_instance_closes_its_processor() -> None:
    async def main() -> None:
        processor = TimedProcessor()
        await Instance("instance-1", processor).aclose()
        assert processor.closed

    run(main())
