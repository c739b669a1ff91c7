"""The queue that a URL stands for, and what `twinload queue` does with it."""

from __future__ import annotations

from typing import Any, Final

from reference_impl.deployment import QueueSpec
from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import DeadLetter, MessageQueue, QueueStatistics

__all__ = [
    "URL_VARIABLE",
    "BadQueueUrl",
    "connect_queue",
    "queue_of",
    "queue_replay",
    "queue_status",
]

# The URL may hold a password, so it comes through the environment and is in no file and no process list.
URL_VARIABLE: Final = "TWINLOAD_QUEUE"

_SCHEMES: Final = {
    "rabbitmq": ("amqp", "amqps"),
    "redis": ("redis", "rediss", "unix"),
    "kafka": ("kafka",),
}


class BadQueueUrl(ValueError):
    """No queue can be had at this address: one line for people."""


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


def queue_of(spec: QueueSpec, url: str) -> MessageQueue | None:
    """The queue that a deployment asks for, at `url`; None for none. Raises BadQueueUrl."""
    if spec.broker == "none":
        return None
    schemes = _SCHEMES[spec.broker]
    if url.partition("://")[0] not in schemes:
        raise BadQueueUrl(
            f"queue.broker {spec.broker}: set {URL_VARIABLE} to its address, {' or '.join(f'{s}://...' for s in schemes)}"
        )
    return connect_queue(url, name=spec.name, lease_s=spec.lease_s, levels=1)


async def queue_status(
    url: str, *, name: str = "tasks", limit: int = 20, **options: Any
) -> tuple[QueueStatistics, list[DeadLetter]]:
    """Depth, age and the oldest `limit` dead letters. Raises a QueueError."""
    queue = connect_queue(url, name=name, **options)
    try:
        statistics = await queue.statistics()
        # RabbitMQ takes them all from their queue for a moment, so they are asked for only where they are wanted.
        return statistics, await queue.dead_letters(limit) if limit else []
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
