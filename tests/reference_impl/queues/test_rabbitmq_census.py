"""What `statistics` asks RabbitMQ for: the queues that there are, and rarely those that there may be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from reference_impl.queues import rabbitmq_census
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from reference_impl.queues.rabbitmq_session import RabbitMQSession
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import unique_prefix

pytestmark = pytest.mark.xdist_group("rabbitmq")


def test_delay_queues_that_are_not_there_are_looked_for_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, name = shared_rabbitmq_url(), unique_prefix()
    asked: list[list[str]] = []
    count = RabbitMQSession.message_counts

    async def note(session: RabbitMQSession, queues: Sequence[str]) -> dict[str, int]:
        asked.append(list(queues))
        return await count(session, queues)

    monkeypatch.setattr(RabbitMQSession, "message_counts", note)

    async def body() -> None:
        queue, other = (RabbitMQQueue(url, name=name, levels=1) for _ in range(2))
        for _ in range(3):
            assert (await queue.statistics()).delayed == 0
        known = [f"{name}.0", f"{name}.dead"]
        assert [len(queues) for queues in asked] == [2 + 25, 2, 2]
        assert asked[-1] == known
        await queue.enqueue_many([QueuedTask("a", "t", {}), QueuedTask("b", "t", {})])
        for connection, delay_s in ((queue, 60.0), (other, 600.0)):
            got = await connection.dequeue(10)
            assert got is not None
            assert await connection.nack(got.task_id, delay_s) == "retry"
        assert (await queue.statistics()).delayed == 1, "its own are known at once"
        assert asked[-1] == [*known, f"{name}.delay.64000"]
        monkeypatch.setattr(rabbitmq_census, "_LOOK_FOR_DELAYS_S", 0.0)
        assert (await queue.statistics()).delayed == 2
        await other.close()
        await queue.close()

    asyncio.run(asyncio.wait_for(body(), 60))
