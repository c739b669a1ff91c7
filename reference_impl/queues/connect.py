"""The queue that a URL stands for, and what `twinload queue` does with it."""

from __future__ import annotations

from typing import Any

from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import DeadLetter, MessageQueue, QueueStatistics

__all__ = ["connect_queue", "queue_replay", "queue_status"]


def connect_queue(url: str, *, name: str = "tasks", **options: Any) -> MessageQueue:
    """`amqp(s)://` RabbitMQ, `redis(s)://` Redis Streams, `kafka://host:port,host:port`, `memory://`.

    `options` are the queue's own (`lease_s`, `levels`, ...). A driver is loaded only where its scheme is asked for. Raises
    ValueError for another scheme.
    """
    scheme = url.partition("://")[0]
    if scheme == "memory":
        return MemoryQueue(**options)
    if scheme in ("amqp", "amqps"):
        from reference_impl.queues.rabbitmq import RabbitMQQueue

        return RabbitMQQueue(url, name=name, **options)
    if scheme in ("redis", "rediss", "unix"):
        from reference_impl.queues.redis_streams import RedisStreamsQueue

        return RedisStreamsQueue(url, name=name, **options)
    if scheme == "kafka":
        from reference_impl.queues.kafka import KafkaQueue

        return KafkaQueue(url.partition("://")[2], name=name, **options)
    raise ValueError(
        f"queue URL begins with {scheme!r}: expected amqp, amqps, redis, rediss, unix, kafka or memory"
    )


async def queue_status(
    url: str, *, name: str = "tasks", limit: int = 20, **options: Any
) -> tuple[QueueStatistics, list[DeadLetter]]:
    """Depth, age and the oldest dead letters. Raises a QueueError."""
    queue = connect_queue(url, name=name, **options)
    try:
        return await queue.statistics(), await queue.dead_letters(limit)
    finally:
        await queue.close()


async def queue_replay(
    url: str, *, name: str = "tasks", limit: int | None = None, **options: Any
) -> int:
    """Make dead letters ready again, the oldest first; how many. Raises a QueueError."""
    queue = connect_queue(url, name=name, **options)
    try:
        return await queue.replay_dead_letters(limit)
    finally:
        await queue.close()
