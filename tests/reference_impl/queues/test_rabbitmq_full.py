"""A RabbitMQ queue with a capacity: producers are held back, and consumers are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from reference_impl.queues.errors import QueueFull
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import unique_prefix

pytestmark = pytest.mark.xdist_group("rabbitmq")

CAPACITY = 3


@pytest.fixture(autouse=True)
def server() -> None:
    shared_rabbitmq_url()  # started before there is a loop


def task(name: str) -> QueuedTask:
    return QueuedTask(name, "t", {})


async def fill(queue: RabbitMQQueue) -> None:
    """Until it raises."""
    while True:
        await queue.enqueue(task("more"))


@asynccontextmanager
async def full_queue() -> AsyncIterator[RabbitMQQueue]:
    """A queue that holds a task of this connection, and as many others as it may."""
    queue = RabbitMQQueue(
        shared_rabbitmq_url(), name=unique_prefix(), levels=2, capacity=CAPACITY, lease_s=30
    )
    async with asyncio.timeout(60):
        await queue.enqueue(task("held"))
        assert await queue.dequeue(10) is not None
        with pytest.raises(QueueFull, match=r"\.0 is full: 0 of 1 tasks were accepted"):
            await fill(queue)
        try:
            yield queue
        finally:
            await queue.close()


def test_a_producer_is_told_that_there_is_no_room_and_stays_connected() -> None:
    async def body() -> None:
        async with full_queue() as queue:
            session = queue._session
            assert session is not None
            ready = (await queue.statistics()).ready[0]
            urgent = QueuedTask("urgent", "t", {}, 1)
            with pytest.raises(QueueFull, match="1 of 3 tasks were accepted"):
                await queue.enqueue_many([task("a"), urgent, task("b")])
            assert queue._session is session
            assert session.is_open
            statistics = await queue.statistics()
            assert statistics.ready == (ready, 1)
            assert statistics.enqueued == 1 + ready

    asyncio.run(body())


def test_what_is_released_to_a_full_queue_is_ready_again() -> None:
    async def body() -> None:
        async with full_queue() as queue:
            assert await queue.release("held")
            again = await queue.dequeue(10)
            assert again is not None
            assert (again.task_id, again.retry_count) == ("held", 0)

    asyncio.run(body())


def test_what_is_to_be_retried_waits_until_a_full_queue_has_room() -> None:
    async def body() -> None:
        async with full_queue() as queue:
            assert await queue.nack("held") == "retry"
            assert queue._session is not None
            assert queue._session._tiers == {125}, "it waits in the shortest delay queue"
            assert not await queue.ack("held")

    asyncio.run(body())


def test_what_a_connection_held_goes_back_to_a_full_queue_when_it_closes() -> None:
    async def body() -> None:
        async with full_queue() as queue:
            name, ready = queue._layout._name, sum((await queue.statistics()).ready)
            await queue.close()
            other = RabbitMQQueue(
                shared_rabbitmq_url(), name=name, levels=2, capacity=CAPACITY, lease_s=30
            )
            while sum((await other.statistics()).ready) != ready + 1:
                await asyncio.sleep(0.02)
            await other.close()

    asyncio.run(body())
