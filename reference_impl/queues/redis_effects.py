"""Effects in Redis or Valkey: one record an idempotency key, written by the first who finishes (SET NX) and kept for a day.

Runs are counted beside it before they happen. Both expire together, `ttl_s` after the last run began.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from reference_impl.queues.effects import DAY_S, Begun, EffectStatistics, EffectsUnavailable
from reference_impl.queues.redis_client import REDIS_ERRORS, close_client, redis_client
from reference_impl.queues.starting import unavailable, without_password

__all__ = ["RedisEffects"]

# KEYS effect, runs, totals. ARGV milliseconds.
_BEGIN: Final = """
local effect = redis.call('GET', KEYS[1])
if effect then return {tonumber(redis.call('GET', KEYS[2]) or '1'), effect} end
local runs = redis.call('INCR', KEYS[2])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[3], 'runs', 1)
return {runs}
"""
# KEYS effect, runs, totals. ARGV effect, milliseconds.
_FINISH: Final = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
redis.call('HINCRBY', KEYS[3], 'effects', 1)
return 1
"""


class RedisEffects:
    """An `EffectStore` on the server at `url`.

    Args:
        name: of the queue whose effects these are. ttl_s: for which a duplicate is recognised.
        timeout_s: of one call.
    """

    def __init__(
        self, url: str, *, name: str = "tasks", ttl_s: float = DAY_S, timeout_s: float = 5.0
    ) -> None:
        self._where = without_password(url)
        self._space = f"twinload:{{{name}}}"
        self._ttl_ms = round(ttl_s * 1000)
        self._timeout_s = timeout_s
        client = self._client = redis_client(url, connections=8, connect_timeout_s=timeout_s)
        self._begin = client.register_script(_BEGIN)
        self._finish = client.register_script(_FINISH)

    async def begin(self, key: str) -> Begun:
        async with self._asking():
            runs, *effect = await self._begin(self._keys(key), [self._ttl_ms])
        return Begun(runs, effect[0] if effect else None)

    async def finish(self, key: str, effect: bytes) -> bool:
        async with self._asking():
            return bool(await self._finish(self._keys(key), [effect, self._ttl_ms]))

    async def effect(self, key: str) -> bytes | None:
        """What was recorded under `key`."""
        async with self._asking():
            found: bytes | None = await self._client.get(self._keys(key)[0])
            return found

    async def statistics(self) -> EffectStatistics:
        async with self._asking():
            totals = await self._client.hgetall(f"{self._space}:effect-totals")
        return EffectStatistics(int(totals.get(b"effects", 0)), int(totals.get(b"runs", 0)))

    async def aclose(self) -> None:
        await close_client(self._client)

    def _keys(self, key: str) -> list[str]:
        return [
            f"{self._space}:effect:{key}",
            f"{self._space}:runs:{key}",
            f"{self._space}:effect-totals",
        ]

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except REDIS_ERRORS as error:
            raise EffectsUnavailable(str(unavailable(error, self._where))) from error
