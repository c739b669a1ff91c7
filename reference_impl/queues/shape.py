"""How a queue was made, read from its broker without making anything.

A connection to a queue declares what it stands on, as its owner does. An operator who only looks must neither make queues of
a mistyped name, nor classes that the owner does not have: this comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from reference_impl.queues.errors import AccessRefused, QueueUnavailable
from reference_impl.queues.starting import without_password

__all__ = ["QueueShape", "find_shape"]

_TIMEOUT_S: Final = 10.0


class QueueShape(msgspec.Struct, frozen=True):
    """Classes of priority, and the lease where the broker's users must agree on it."""

    levels: int
    lease_s: float | None = None


async def find_shape(url: str, name: str) -> QueueShape | None:
    """The shape of the queue at `url` (RabbitMQ, Redis or Kafka); None: there is none. Raises a QueueError."""
    scheme = url.partition("://")[0]
    if scheme in ("amqp", "amqps"):
        return await _on_rabbitmq(url, name)
    if scheme == "kafka":
        return await _on_kafka(url.partition("://")[2], name)
    return await _on_redis(url, name)


async def _on_rabbitmq(url: str, name: str) -> QueueShape | None:
    import aiormq

    from reference_impl.queues.rabbitmq_errors import AMQP_ERRORS, translated

    try:
        async with asyncio.timeout(_TIMEOUT_S):
            connection = await aiormq.connect(url)
            try:
                channel = await connection.channel()
                levels = 0
                with contextlib.suppress(aiormq.exceptions.ChannelNotFoundEntity):
                    while True:
                        await channel.queue_declare(f"{name}.{levels}", passive=True)
                        levels += 1
            finally:
                await connection.close()
    except AMQP_ERRORS as error:
        refusal = translated(error, without_password(url))
        if isinstance(refusal, AccessRefused):
            raise refusal from error
        raise _away(without_password(url), error) from error
    return QueueShape(levels) if levels else None


async def _on_redis(url: str, name: str) -> QueueShape | None:
    from redis.asyncio import Redis
    from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

    where = without_password(url)
    client: Any = Redis.from_url(url, protocol=2, socket_connect_timeout=_TIMEOUT_S)
    try:
        async with asyncio.timeout(_TIMEOUT_S), client:
            written = await client.hgetall(f"twinload:{{{name}}}:settings")
    except (AuthenticationError, NoPermissionError) as error:
        raise AccessRefused(f"{where} refuses these credentials: {error}") from error
    except (RedisError, OSError, TimeoutError) as error:
        raise _away(where, error) from error
    if not written:
        return None
    return QueueShape(int(written[b"levels"]), float(written[b"lease_s"]))


async def _on_kafka(servers: str, name: str) -> QueueShape | None:
    from aiokafka.errors import KafkaError

    try:
        async with asyncio.timeout(_TIMEOUT_S), _kafka_reader(servers) as reader:
            # Asked for all of them, the cluster makes none, as it may for one that is named.
            topics = await reader.topics()
    except (KafkaError, OSError, TimeoutError) as error:
        raise _away(f"kafka://{servers}", error) from error
    levels = 0
    while f"{name}.{levels}" in topics:
        levels += 1
    return QueueShape(levels) if levels else None


@asynccontextmanager
async def _kafka_reader(servers: str) -> AsyncIterator[Any]:
    from aiokafka import AIOKafkaConsumer

    reader = AIOKafkaConsumer(bootstrap_servers=servers)
    try:
        await reader.start()
        yield reader
    finally:
        await reader.stop()


def _away(where: str, error: BaseException) -> QueueUnavailable:
    why = "no answer in time" if isinstance(error, TimeoutError) else str(error).rstrip(".")
    return QueueUnavailable(
        f"no broker at {where} ({why or type(error).__name__}): start it (twinload services up), or correct the URL"
    )
