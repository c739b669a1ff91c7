"""A connection that dies without a word: nobody is told, so only a limit of the client's own can notice."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from reference_impl.live.loop import run_live
from reference_impl.queues.errors import QueueUnavailable
from reference_impl.queues.port import MessageQueue, QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from reference_impl.queues.redis_streams import RedisStreamsQueue
from tests.faults.cuttable_link import Link
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import shared_valkey_url, unique_prefix

LEASE_S = 1.0
TIMEOUT_S = 0.5
LIMIT_S = 20.0


def task(name: str) -> QueuedTask:
    return QueuedTask(name, "call", None)


async def send(queue: MessageQueue, sent: QueuedTask) -> None:
    while True:
        try:
            await queue.enqueue(sent)
        except QueueUnavailable:
            continue
        return


async def take(queue: MessageQueue) -> str:
    """As a processor does it: a broker that is away is asked again."""
    while True:
        try:
            taken = await queue.dequeue(math.inf)
        except QueueUnavailable:
            continue
        assert taken is not None
        return taken.task_id


def rabbitmq(url: str, name: str) -> MessageQueue:
    return RabbitMQQueue(
        url, name=name, lease_s=LEASE_S, levels=1, timeout_s=TIMEOUT_S, heartbeat_s=1.0
    )


def redis(url: str, name: str) -> MessageQueue:
    return RedisStreamsQueue(url, name=name, lease_s=LEASE_S, levels=1, timeout_s=TIMEOUT_S)


BROKERS = pytest.mark.parametrize(
    ("broker", "make"),
    [
        # aiormq gives a silent broker up after three times its heartbeat and one second.
        pytest.param(
            shared_rabbitmq_url,
            rabbitmq,
            marks=[pytest.mark.soak, pytest.mark.xdist_group("rabbitmq")],
        ),
        (shared_valkey_url, redis),
    ],
    ids=["rabbitmq", "redis"],
)


@BROKERS
def test_a_consumer_whose_connections_died_silently_is_served_again(
    broker: Callable[[], str], make: Callable[[str, str], MessageQueue]
) -> None:
    url, name = broker(), unique_prefix()
    port = int(url.rsplit(":", 1)[1].partition("/")[0])

    async def main() -> None:
        async with AsyncExitStack() as stack:
            near = make(url, name)
            stack.push_async_callback(near.close)
            link = await stack.enter_async_context(Link(port))
            far = make(url.replace(f":{port}/", f":{link.port}/"), name)
            stack.push_async_callback(far.close)
            async with asyncio.timeout(LIMIT_S):
                await near.enqueue(task("before"))
                assert await take(far) == "before"
                assert await far.ack("before")
                waiting = asyncio.create_task(take(far))
                await far.statistics()  # the other call waits at the broker by now
                link.cut()
                link.mend(forget=True)
                await near.enqueue(task("after"))
                assert await waiting == "after"
                assert await far.ack("after")
                # What it does in the background goes on as well, over connections that were made since.
                await near.enqueue(task("retried"))
                assert await take(far) == "retried"
                assert await far.nack("retried", 0.1) == "retry"
                assert await take(far) == "retried"
                assert await far.ack("retried")

    run_live(main())


@BROKERS
def test_a_producer_whose_connection_died_silently_is_heard_again(
    broker: Callable[[], str], make: Callable[[str, str], MessageQueue]
) -> None:
    url, name = broker(), unique_prefix()
    port = int(url.rsplit(":", 1)[1].partition("/")[0])

    async def main() -> None:
        async with AsyncExitStack() as stack:
            near = make(url, name)
            stack.push_async_callback(near.close)
            link = await stack.enter_async_context(Link(port))
            far = make(url.replace(f":{port}/", f":{link.port}/"), name)
            stack.push_async_callback(far.close)
            async with asyncio.timeout(LIMIT_S):
                await far.enqueue(task("before"))
                link.cut()
                with pytest.raises(QueueUnavailable):
                    await far.enqueue(task("lost"))
                link.mend(forget=True)
                await send(far, task("after"))
                assert await take(near) == "before"
                assert await take(near) == "after"

    run_live(main())
