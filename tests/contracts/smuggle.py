"""Another program's way into a queue: bytes among its tasks that our producers would refuse."""

from __future__ import annotations

import math
from typing import Any

import aio_pika
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis

from reference_impl.queues.book import QueueBook
from reference_impl.queues.book_entry import Entry

__all__ = ["into_book", "into_kafka", "into_rabbitmq", "into_redis"]


def into_book(book: QueueBook, data: bytes) -> None:
    """Of the least urgent class, as all of these."""
    book._ready.put(0, Entry(data, 0, 0.0, math.inf, 0))
    book._size += 1


async def into_redis(url: str, name: str, data: bytes) -> None:
    client: Any = Redis.from_url(url)
    await client.xadd(f"twinload:{{{name}}}:ready:0", {"t": data})
    await client.aclose()


async def into_rabbitmq(url: str, name: str, data: bytes) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(aio_pika.Message(data), f"{name}.0")


async def into_kafka(url: str, topic: str, data: bytes) -> None:
    """`topic` is `{name}.0` for a task."""
    producer = AIOKafkaProducer(bootstrap_servers=url)
    await producer.start()
    await producer.send_and_wait(topic, data, partition=0)
    await producer.stop()
