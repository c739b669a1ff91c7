"""A task that is given back while its broker is slow goes back once, though its lease would have ended meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from reference_impl.queues.broker_queue import BrokerQueue
from reference_impl.queues.kafka import KafkaQueue
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from tests.servers.kafka import shared_kafka_url
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import unique_prefix

LEASE_S = 0.4

Queue = BrokerQueue[Any, Any]


def kafka() -> tuple[Queue, str]:
    queue = KafkaQueue(
        shared_kafka_url(), name=unique_prefix(), levels=1, in_group=False, lease_s=LEASE_S
    )
    return queue, "send_and_wait"


def rabbitmq() -> tuple[Queue, str]:
    queue = RabbitMQQueue(shared_rabbitmq_url(), name=unique_prefix(), levels=1, lease_s=LEASE_S)
    return queue, "publish"


BROKERS = [
    pytest.param(kafka, id="kafka"),
    pytest.param(rabbitmq, id="rabbitmq", marks=pytest.mark.xdist_group("rabbitmq")),
]


async def slow_down(queue: Queue, method: str) -> None:
    """What the session sends takes longer than two leases."""
    session = queue._session
    send = getattr(session, method)

    async def slowly(*arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(2.5 * LEASE_S)
        return await send(*arguments, **options)

    setattr(session, method, slowly)


@pytest.mark.parametrize("make", BROKERS)
def test_a_retry_goes_back_once(make: Any) -> None:
    queue, method = make()

    async def body() -> None:
        await queue.enqueue(QueuedTask("t", "t", {}))
        assert await queue.dequeue(10) is not None
        session = queue._session
        await slow_down(queue, method)
        assert await queue.nack("t") == "retry"
        again = await queue.dequeue(10)
        assert again is not None
        assert (again.retry_count, again.redeliveries) == (1, 0)
        assert await queue.ack("t")
        assert await queue.dequeue(0.5) is None
        assert queue._session is session, "nothing was settled twice"
        await queue.close()

    asyncio.run(asyncio.wait_for(body(), 60))


@pytest.mark.parametrize("make", BROKERS)
def test_a_burial_happens_once(make: Any) -> None:
    queue, method = make()

    async def body() -> None:
        await queue.enqueue(QueuedTask("t", "t", {}))
        assert await queue.dequeue(10) is not None
        session = queue._session
        await slow_down(queue, method)
        assert await queue.reject("t", "poison")
        assert await queue.dequeue(0.5) is None
        assert queue._session is session, "nothing was settled twice"
        assert len(await queue.dead_letters()) == 1
        await queue.close()

    asyncio.run(asyncio.wait_for(body(), 60))
