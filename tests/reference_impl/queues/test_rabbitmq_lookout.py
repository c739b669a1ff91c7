"""Looks at RabbitMQ's queues, also at such as do not exist, beside tasks that are being published."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from reference_impl.queues import rabbitmq_census
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import unique_prefix

pytestmark = pytest.mark.xdist_group("rabbitmq")

TASKS = 5_000


def test_looks_that_are_cut_off_take_nothing_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel each that closes for a queue which is not there, or in the middle of a question."""
    monkeypatch.setattr(rabbitmq_census, "_LOOK_FOR_DELAYS_S", 0.0)
    url, cut_off = shared_rabbitmq_url(), 0

    async def look(queue: RabbitMQQueue) -> None:
        nonlocal cut_off
        for number in itertools.count():
            try:
                async with asyncio.timeout(0.001 * (number % 40)):
                    await queue.statistics()
            except TimeoutError:
                cut_off += 1

    async def body() -> None:
        queue = RabbitMQQueue(url, name=unique_prefix(), levels=1)
        await queue.statistics()
        before = queue._session
        looking = asyncio.create_task(look(queue))
        await queue.enqueue_many([QueuedTask(str(n), "t", {}) for n in range(TASKS)])
        while cut_off < 40:
            await asyncio.sleep(0)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        assert (await queue.statistics()).ready == (TASKS,)
        assert queue._session is before
        await queue.close()

    asyncio.run(asyncio.wait_for(body(), 60))
