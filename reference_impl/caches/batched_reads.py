"""Reads that come while a read is under way travel together, in one round trip.

One read alone goes straight through, in its own task. Those that arrive before its answer wait for each other and become one
MGET when it is back: the busier the process, the larger the batch, and nobody waits for a timer (group commit, for reads).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from reference_impl.caches.port import StoreUnavailable

__all__ = ["BatchedReads"]

_MAX_BATCH: Final = 100


class BatchedReads:
    """Reads by `read_one` and `read_many`, whose errors reach the readers; a batch fails as a whole, after `limit_s`
    at the latest, so that a connection on which nothing arrives does not hold up the reads that come later.
    """

    def __init__(
        self,
        read_one: Callable[[str], Awaitable[bytes | None]],
        read_many: Callable[[Sequence[str]], Awaitable[Sequence[bytes | None]]],
        *,
        limit_s: float,
    ) -> None:
        self._read_one = read_one
        self._read_many = read_many
        self._limit_s = limit_s
        self._waiting: deque[tuple[str, asyncio.Future[bytes | None]]] = deque()
        self._busy = False
        self._batches: asyncio.Task[None] | None = None

    async def get(self, key: str) -> bytes | None:
        if self._busy:
            future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
            self._waiting.append((key, future))
            return await future
        self._busy = True
        try:
            return await self._read_one(key)
        finally:
            if self._waiting:
                self._batches = asyncio.create_task(
                    self._read_batches(), name="background:cache-reads"
                )
            else:
                self._busy = False

    async def aclose(self) -> None:
        if self._batches is not None:
            self._batches.cancel()
            await asyncio.gather(self._batches, return_exceptions=True)

    async def _read_batches(self) -> None:
        try:
            while self._waiting:
                size = min(len(self._waiting), _MAX_BATCH)
                await self._read_batch([self._waiting.popleft() for _ in range(size)])
        finally:
            self._busy = False

    async def _read_batch(self, batch: list[tuple[str, asyncio.Future[bytes | None]]]) -> None:
        batch = [(key, future) for key, future in batch if not future.done()]
        if not batch:
            return
        try:
            async with asyncio.timeout(self._limit_s):
                values = await self._read_many([key for key, _ in batch])
        except BaseException as error:
            expected = isinstance(error, Exception)
            for _, future in batch:
                if not future.done():
                    future.set_exception(error if expected else StoreUnavailable("closed"))
            if not expected:
                raise
            return
        for (_, future), value in zip(batch, values, strict=True):
            if not future.done():
                future.set_result(value)
