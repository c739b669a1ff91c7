"""Tasks that come from Redis Streams: read when they are wanted, or taken over when their lease has ended."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

import msgspec

from reference_impl.queues.codec import decode_task
from reference_impl.queues.counts import Counts
from reference_impl.queues.errors import InvalidTask
from reference_impl.queues.inbox import Delivery, Inbox
from reference_impl.queues.redis_session import RedisSession, Row

__all__ = ["RedisReceiver"]


class RedisReceiver:
    """Fills `inbox`; every call may raise one of REDIS_ERRORS.

    Args:
        levels, lease_s, delivery_limit, clock: of the queue. counts: where redeliveries and burials are noted.
    """

    def __init__(
        self,
        session: RedisSession,
        inbox: Inbox[bytes],
        counts: Counts,
        *,
        levels: int,
        lease_s: float,
        delivery_limit: int,
        clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._inbox = inbox
        self._counts = counts
        self._levels = levels
        self._lease_s = lease_s
        self._delivery_limit = delivery_limit
        self._clock = clock
        # When what was left idle was last looked for, by the loop's clock.
        self.looked_s = -math.inf

    async def read(self, most: int, block_s: float | None = None) -> None:
        """Fetch from every class of which fewer than `most` are here; with `block_s`, wait for the first."""
        short = [n for n in range(self._levels) if self._inbox.waiting_in(n) < most]
        await self._receive(await self._session.read(short, most, block_s))

    async def take_over(self, most: int) -> None:
        """Hold what others, or we, let lie for a lease: `most` of a class, because others may want the rest."""
        self.looked_s = asyncio.get_running_loop().time()
        for level in range(self._levels):
            rows = await self._session.take_over(level, self._lease_s, most)
            self._counts.redelivered += len(rows)
            for row in rows:
                self._forget(row.entry_id)
            await self._receive([r for r in rows if r.redeliveries <= self._delivery_limit])
            for row in rows:
                if row.redeliveries > self._delivery_limit:
                    await self._bury(row, f"lost {row.redeliveries} times; its lease ended")

    async def _receive(self, rows: Sequence[Row]) -> None:
        """Tasks first: what is none is buried then, and if that fails it comes again when its lease ends."""
        unreadable = []
        for row in rows:
            try:
                task = decode_task(row.data)
            except InvalidTask as error:
                unreadable.append((row, str(error)))
                continue
            if row.redeliveries:
                task = msgspec.structs.replace(task, redeliveries=row.redeliveries)
            self._inbox.put(Delivery(task, row.level, row.entry_id))
        for row, reason in unreadable:
            await self._bury(row, reason)

    async def _bury(self, row: Row, reason: str) -> None:
        buried = await self._session.bury(row.level, row.entry_id, row.data, reason, self._clock())
        self._counts.dead_lettered += buried

    def _forget(self, entry_id: bytes) -> None:
        """Our own lease of it has ended."""
        for copies in self._inbox.all_held():
            if any(copy.receipt == entry_id for copy in copies):
                self._inbox.forget(copies)
        self._inbox.keep(lambda delivery: delivery.receipt != entry_id)
