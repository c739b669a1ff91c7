"""A client of Redis or Valkey for queues and their effects, and what its errors mean."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)

from reference_impl.live.redis_pool import redis_pool
from reference_impl.queues.errors import AccessRefused, QueueError, QueueFull
from reference_impl.queues.starting import unavailable

__all__ = ["REDIS_ERRORS", "close_client", "is_without_group", "redis_client", "translated"]

# Every error that redis-py and the sockets below it raise for a server that is away, or went.
REDIS_ERRORS: Final = (RedisError, OSError, TimeoutError)


def redis_client(url: str, *, connections: int, connect_timeout_s: float) -> Any:
    """A client that waits for a free connection and repeats nothing by itself: what may have happened is told.

    Untyped, because redis-py annotates each reply with every type that any version and mode may give. Raises ValueError for
    what is no URL.
    """
    pool = redis_pool(
        url,
        max_connections=connections,
        protocol=2,  # RESP 3 gives streams in another shape
        socket_timeout=None,
        socket_connect_timeout=connect_timeout_s,
    )
    return Redis(connection_pool=pool)


async def close_client(client: Any) -> None:
    await client.aclose()
    await client.connection_pool.disconnect()


def is_without_group(error: BaseException) -> bool:
    """Whether the server has lost its data, and with them the groups of its streams."""
    return isinstance(error, ResponseError) and "NOGROUP" in str(error)


def translated(error: BaseException, where: str) -> QueueError:
    """What one of REDIS_ERRORS means to a user of a queue."""
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return AccessRefused(
            f"{where} refuses these credentials ({error}): correct user and password in the URL, or the ACL"
        )
    if isinstance(error, OutOfMemoryError):
        return QueueFull(f"{where} is out of memory ({error}): wait, or raise maxmemory")
    return unavailable(error, where)
