"""The queue that a URL stands for, and what `twinload queue` does with it."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from reference_impl.deployment import QueueSpec
from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import DeadLetter, MessageQueue, QueueStatistics

__all__ = [
    "URL_VARIABLE",
    "BadQueueUrl",
    "checked_url",
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


_EXPECTED: Final = (
    "expected amqp(s)://user:password@host:port/, redis(s)://user:password@host:port/, unix:///path, "
    "kafka://host:port,host:port or memory://"
)
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://")
_SERVER: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/?#\s]+):(?P<port>[0-9]{1,5})")


class BadQueueUrl(ValueError):
    """No queue can be had at this address: one line for people."""


def checked_url(url: str) -> str:
    """`url`, if it is one of a queue and its driver can read it; no broker is asked.

    Raises BadQueueUrl. It repeats no word of the URL but its scheme: in a wrong one a password may stand anywhere.
    """
    found = _SCHEME.match(url)
    scheme = found[1] if found else ""
    try:
        if scheme == "kafka":
            _check_servers(url.removeprefix("kafka://"))
        elif scheme in ("amqp", "amqps"):
            _check_address(url)
            _check_amqp(url)
        elif scheme in ("redis", "rediss", "unix"):
            _check_address(url)
            _check_redis(url)
        elif scheme != "memory":
            raise _Wrong(f"it begins with {scheme!r}" if scheme else "it has no scheme")
    except (ValueError, TypeError) as error:
        why = str(error) if type(error) is _Wrong else "it cannot be read"
        raise BadQueueUrl(f"no URL of a queue ({why}): {_EXPECTED}") from None
    return url


class _Wrong(ValueError):
    """Words of ours, which hold none of the URL; those of others may."""


def _check_address(url: str) -> None:
    """One server, or the path of a socket. Raises ValueError."""
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        raise _Wrong("write / ? # and @ in user and password as %2F %3F %23 and %40")
    if parts.scheme == "unix":
        if not parts.path:
            raise _Wrong("the path of the socket is missing")
    elif not parts.hostname or parts.port == 0:
        raise _Wrong("the host is missing, or the port is 0")


def _check_servers(servers: str) -> None:
    if "@" in servers:
        raise _Wrong("Kafka is given no user and password here")
    for server in servers.rstrip("/").split(","):
        found = _SERVER.fullmatch(server)
        if found is None or not 0 < int(found["port"]) < 65_536:
            raise _Wrong("each server of Kafka is a host and a port")


def _check_amqp(url: str) -> None:
    from yarl import URL

    URL(url)
    options = parse_qs(urlsplit(url).query)
    for option in ("heartbeat", "timeout"):
        for value in options.get(option, ()):
            if not value.isdecimal() or int(value) > 65_535:
                raise _Wrong(f"{option} is a whole number of seconds")


def _check_redis(url: str) -> None:
    from redis.asyncio import ConnectionPool
    from redis.exceptions import RedisError

    try:
        pool: Any = ConnectionPool.from_url(url)
        pool.make_connection()  # which connects when it is used
    except (ValueError, TypeError, RedisError) as error:
        raise _Wrong("an option behind its ? is unknown, or has a wrong value") from error


def connect_queue(url: str, *, name: str = "tasks", **options: Any) -> MessageQueue:
    """`amqp(s)://` RabbitMQ, `redis(s)://` Redis Streams, `kafka://host:port,host:port`, `memory://`.

    `options` are the queue's own (`lease_s`, `levels`, ...). A driver is loaded only where its scheme is asked for. Raises
    BadQueueUrl.
    """
    scheme = checked_url(url).partition("://")[0]
    if scheme == "memory":
        return MemoryQueue(**options)
    if scheme in ("amqp", "amqps"):
        from reference_impl.queues.rabbitmq import RabbitMQQueue

        return RabbitMQQueue(url, name=name, **options)
    if scheme == "kafka":
        from reference_impl.queues.kafka import KafkaQueue

        return KafkaQueue(url.partition("://")[2].rstrip("/"), name=name, **options)
    from reference_impl.queues.redis_streams import RedisStreamsQueue

    return RedisStreamsQueue(url, name=name, **options)


def queue_of(spec: QueueSpec, url: str) -> MessageQueue | None:
    """The queue that a deployment asks for, at `url`; None for none. Raises BadQueueUrl."""
    if spec.broker == "none":
        return None
    schemes = _SCHEMES[spec.broker]
    if url.partition("://")[0] not in schemes:
        raise BadQueueUrl(
            f"queue.broker {spec.broker}: set {URL_VARIABLE} to its address, {' or '.join(f'{s}://...' for s in schemes)}"
        )
    try:
        return connect_queue(url, name=spec.name, lease_s=spec.lease_s, levels=1)
    except BadQueueUrl as error:
        raise BadQueueUrl(f"{URL_VARIABLE} is {error}") from None


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
