"""A queue as a station in the samples."""

from __future__ import annotations

import asyncio
import math

import pytest

from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import QueuedTask, QueueStatistics
from reference_impl.queues.station import QueueStation
from simulation import kernel
from simulation.models.broker import Broker, VirtualQueue


def tasks(first: int, number: int) -> list[QueuedTask]:
    return [QueuedTask(f"t{n}", "work", None) for n in range(first, first + number)]


def test_lengths_are_the_mean_of_two_looks_and_counts_are_between_them() -> None:
    async def main() -> None:
        queue = MemoryQueue(lease_s=100)
        station = QueueStation()
        assert station.sample() == [], "nobody has looked"
        await queue.enqueue_many(tasks(0, 10))
        await asyncio.sleep(2)
        station.note(await queue.statistics())
        (first,) = station.sample(origin_s=0.5)
        assert (first.station, first.kind, first.capacity) == ("broker", "broker", math.inf)
        assert (first.t_s, first.interval_s) == (1.5, 2.0)
        assert (first.arrivals, first.completions, first.queue_length) == (10, 0, 5.0)
        for task in await queue.dequeue_many(4):
            if task.task_id != "t0":
                await queue.ack(task.task_id)
        await queue.enqueue_many(tasks(10, 2))
        await asyncio.sleep(4)
        assert station.sample() == [], "nobody has looked again"
        station.note(await queue.statistics())
        (second,) = station.sample()
        assert (second.arrivals, second.completions) == (2, 3)
        assert (second.queue_length, second.in_service, second.busy_s) == (9.0, 0.5, 2.0)

    kernel.run(main())


def test_where_the_broker_cannot_tell_what_is_held_handing_out_is_leaving() -> None:
    async def main() -> None:
        station = QueueStation()
        for at_s, ready, enqueued in ((1, 9, 10), (2, 4, 10)):
            await asyncio.sleep(1)
            station.note(QueueStatistics((ready,), None, None, 0, None, enqueued=enqueued))
            (sample,) = station.sample()
            assert sample.t_s == at_s
        assert (sample.arrivals, sample.completions, sample.in_service) == (0, 5, 0.0)

    kernel.run(main())


@pytest.mark.parametrize("outage", ["refusing", "hanging"])
def test_a_broker_that_is_away_is_looked_at_again_when_it_is_back(outage: str) -> None:
    async def main() -> None:
        broker = Broker()
        queue = VirtualQueue(broker, "gateway")
        station = QueueStation()
        watching = asyncio.create_task(station.watch(queue, 1.0), name="background:watch")
        await queue.enqueue_many(tasks(0, 3))
        await asyncio.sleep(1.5)
        assert len(station.sample()) == 1
        broker.fail("refusing" if outage == "refusing" else "hanging")
        await asyncio.sleep(5)
        assert station.sample() == []
        broker.recover()
        await asyncio.sleep(2.5)
        (sample,) = station.sample()
        assert sample.queue_length == 3.0
        watching.cancel()
        await queue.close()

    kernel.run(main())
