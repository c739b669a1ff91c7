"""Connections to Redis on uvloop: a socket that is gone is redis-py's ConnectionError, whenever it is noticed.

redis-py expects a write to a closed transport to be an OSError, or nothing. uvloop raises RuntimeError ("the handler is
closed"), which passes every handler of RedisError: a network that reset its connections ended whole processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, SSLConnection
from redis.asyncio.connection import UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

__all__ = ["redis_pool"]


class _Translating:
    """Above a class of redis-py's connections."""

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        above: Any = super()
        try:
            await above.send_packed_command(command, check_health)
        except RuntimeError as error:  # redis-py has given the connection up by now
            raise RedisConnectionError(f"the connection was closed: {error}") from error


class _Tcp(_Translating, Connection):
    pass


class _Tls(_Translating, SSLConnection):
    pass


class _Unix(_Translating, UnixDomainSocketConnection):
    pass


def redis_pool(url: str, *, max_connections: int, **options: Any) -> Any:
    """A pool for `url` (`redis://`, `rediss://`, `unix://`) that waits for a free connection and retries nothing by itself."""
    pool: Any = BlockingConnectionPool.from_url(
        url, max_connections=max_connections, timeout=None, retry=Retry(NoBackoff(), 0), **options
    )
    # The URL's scheme chooses redis-py's class; this is the same one, with its errors translated.
    pool.connection_class = {"rediss": _Tls, "unix": _Unix}.get(urlsplit(url).scheme, _Tcp)
    return pool
