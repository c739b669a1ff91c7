"""What a connection to RabbitMQ holds beyond what it works on, and what becomes of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from reference_impl.queues.port import QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import unique_prefix

pytestmark = pytest.mark.xdist_group("rabbitmq")

LEVELS = 3


@pytest.fixture(autouse=True)
def server() -> None:
    shared_rabbitmq_url()  # started before there is a loop


def connection(**options: Any) -> RabbitMQQueue:
    options = {"name": unique_prefix(), "levels": LEVELS, "lease_s": 0.8, **options}
    return RabbitMQQueue(shared_rabbitmq_url(), **options)


def tasks(number: int) -> list[QueuedTask]:
    return [QueuedTask(f"{p}-{n}", "t", {}, p) for n in range(number) for p in range(LEVELS)]


def play(body: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0.01)


def test_a_freed_slot_of_long_work_takes_one_task_and_leaves_the_rest_to_others() -> None:
    async def body() -> None:
        queue = connection(lease_s=30.0)
        await queue.enqueue_many(tasks(10))
        held = [t.task_id for t in await queue.dequeue_many(10, 10)]
        assert len(held) == 10
        for name in held[:5]:
            for copy in queue._inbox.held(name):
                copy.lease_ends_s -= 1.0  # as if it had been given out a second ago
            assert await queue.ack(name)
            assert await queue.dequeue(10) is not None
            assert queue._inbox.waiting() == []
        assert queue._intake.prefetch == 0, "nothing comes that is not asked for"
        await queue.close()

    play(body)


def test_what_was_not_wanted_goes_back_to_its_place() -> None:
    async def body() -> None:
        name = unique_prefix()
        queue, other = (connection(name=name, lease_s=2.0) for _ in range(2))
        await other.statistics()
        waiting = asyncio.create_task(queue.dequeue(10))
        await until(lambda: queue._intake.prefetch > 0)
        await other.enqueue_many(tasks(3))
        first = await waiting
        assert first is not None
        await until(lambda: queue._intake.prefetch == 0 and not queue._inbox.waiting())
        taken = [first, *[t for _ in range(8) if (t := await other.dequeue(10)) is not None]]
        for level in range(LEVELS):
            of_class = [t.task_id for t in taken if t.priority == level]
            assert of_class == [f"{level}-{n}" for n in range(3)]
        await other.close()
        await queue.close()

    play(body)


@pytest.mark.parametrize("limit", [0, 4])
def test_going_back_unwanted_never_buries_a_task(limit: int) -> None:
    async def body() -> None:
        queue = connection(delivery_limit=limit, lease_s=2.0)
        await queue.enqueue_many(tasks(1))
        for _ in range(5):
            queue._intake.note_held(0.0)  # as after short work, so that one of each class comes
            got = await queue.dequeue(10)
            assert got is not None
            assert got.redeliveries <= limit // 4
            await until(lambda: queue._intake.prefetch == 0 and not queue._inbox.waiting())
            assert await queue.release(got.task_id)
        assert (await queue.statistics()).dead == 0
        queue._intake.note_held(1.0)
        assert len(await queue.dequeue_many(3, 10)) == 3
        await queue.close()

    play(body)


def test_a_wait_that_is_cancelled_while_consumers_are_made_leaves_no_class_without_one() -> None:
    async def body() -> None:
        for pause_s in (0.0, 0.001, 0.002, 0.003, 0.005):
            queue = connection(lease_s=30.0)
            await queue.statistics()
            waiting = asyncio.create_task(queue.dequeue(60))
            await asyncio.sleep(pause_s)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await queue.enqueue_many(tasks(1))
            for _ in range(LEVELS):
                got = await queue.dequeue(10)
                assert got is not None
                assert await queue.ack(got.task_id)
            await queue.close()

    play(body)
