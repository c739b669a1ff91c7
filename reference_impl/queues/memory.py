"""A queue within one process: for tests, for small systems, and for virtual time. It dies with its process."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from reference_impl.queues.book import DELIVERY_LIMIT, LEVELS, QueueBook
from reference_impl.queues.codec import MAX_TASK_BYTES
from reference_impl.queues.errors import QueueClosed
from reference_impl.queues.port import DeadLetter, Fate, MessageQueue, QueuedTask, QueueStatistics

__all__ = ["MemoryQueue", "await_tasks"]


class MemoryQueue(MessageQueue):
    """A `MessageQueue` in memory, on one loop, whose clock is its own.

    Args:
        lease_s, levels, capacity, delivery_limit, max_bytes: see `QueueBook`.
    """

    def __init__(
        self,
        *,
        lease_s: float = 60.0,
        levels: int = LEVELS,
        capacity: int | None = None,
        delivery_limit: int = DELIVERY_LIMIT,
        max_bytes: int = MAX_TASK_BYTES,
    ) -> None:
        book = QueueBook(
            levels=levels,
            lease_s=lease_s,
            capacity=capacity,
            delivery_limit=delivery_limit,
            max_bytes=max_bytes,
        )
        self._open(book, asyncio.Event())

    def _open(self, book: QueueBook, changed: asyncio.Event) -> None:
        self.lease_s = book.lease_s
        self._book = book
        self._changed = changed
        self._consumer = book.new_consumer()
        self._closed = False
        # Of the loop that uses it first, to which its waiting binds it anyway: asking for the loop costs a system call (in
        # Python 3.11 it looks whether the process forked).
        self._time: Callable[[], float] | None = None

    def connect(self) -> MemoryQueue:
        """Another connection to the same tasks."""
        other = MemoryQueue.__new__(MemoryQueue)
        other._open(self._book, self._changed)  # noqa: SLF001 - its own kind
        return other

    async def enqueue_many(self, tasks: Sequence[QueuedTask]) -> list[str]:
        now = self._now()
        self._book.add(self._consumer, self._book.encode(tasks, now), now)
        self._changed.set()
        return [task.task_id for task in tasks]

    async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
        taken = self._book.take(self._consumer, max_tasks, self._now())
        if taken or wait_s <= 0:
            return taken
        return await await_tasks(
            self._book.next_due_s,
            self._changed,
            lambda: self._book.take(self._consumer, max_tasks, self._now()),
            wait_s,
        )

    async def ack_many(self, task_ids: Sequence[str]) -> list[bool]:
        now = self._now()
        return [self._book.ack(self._consumer, task_id, now) for task_id in task_ids]

    # One at a time by ways of their own: a list and a coroutine more cost a third of such a call.

    async def enqueue(self, task: QueuedTask) -> str:
        now = self._now()
        self._book.add(self._consumer, (self._book.encode_one(task, now),), now)
        self._changed.set()
        return task.task_id

    async def dequeue(self, wait_s: float = 0.0) -> QueuedTask | None:
        task = self._book.take_one(self._consumer, self._now())
        if task is not None or wait_s <= 0:
            return task
        return await super().dequeue(wait_s)

    async def ack(self, task_id: str) -> bool:
        return self._book.ack(self._consumer, task_id, self._now())

    async def nack(self, task_id: str, delay_s: float = 0.0, reason: str = "") -> Fate:
        fate = self._book.nack(self._consumer, task_id, delay_s, reason, self._now())
        self._changed.set()
        return fate

    async def release(self, task_id: str) -> bool:
        released = self._book.release(self._consumer, task_id, self._now())
        self._changed.set()
        return released

    async def reject(self, task_id: str, reason: str) -> bool:
        return self._book.reject(self._consumer, task_id, reason, self._now())

    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        lease_s = self.checked_lease_s(lease_s)
        return self._book.extend(self._consumer, task_id, lease_s, self._now())

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        self._now()
        return self._book.dead_letters(limit)

    async def replay_dead_letters(self, limit: int | None = None) -> int:
        replayed = self._book.replay(limit, self._now())
        self._changed.set()
        return replayed

    async def statistics(self) -> QueueStatistics:
        return self._book.statistics(self._consumer, self._now())

    async def close(self) -> None:
        if not self._closed:
            self._book.leave(self._consumer, self._now(), lost=False)
            self._closed = True
            self._changed.set()

    def _now(self) -> float:
        if self._closed:
            raise QueueClosed("the queue was closed; make another connection")
        if self._time is None:
            self._time = asyncio.get_running_loop().time
        return self._time()


async def await_tasks(
    next_due_s: Callable[[], float],
    changed: asyncio.Event,
    take: Callable[[], list[QueuedTask]],
    wait_s: float,
) -> list[QueuedTask]:
    """What `take` gives, as soon as it gives something, within `wait_s`.

    `changed` is set by whoever makes tasks ready; what becomes ready by itself does so at `next_due_s()`.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + wait_s
    while True:
        changed.clear()
        taken = take()
        if taken or loop.time() >= until_s:
            return taken
        wake_s = min(until_s, next_due_s())
        try:
            async with asyncio.timeout_at(None if wake_s == math.inf else wake_s):
                await changed.wait()
        except TimeoutError:
            continue
