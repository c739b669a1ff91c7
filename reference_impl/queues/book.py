"""What a broker knows of its tasks: the port's semantics as a state machine, without time, waiting or wires.

Every call is told the instant. The queue in memory is this book; the virtual broker is this book behind a network. It keeps
tasks as their bytes, so that what a consumer does to a payload stays with that consumer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import count, islice

from reference_impl.queues.book_entry import Entry
from reference_impl.queues.class_queues import ClassQueues
from reference_impl.queues.codec import COUNTS_BYTES
from reference_impl.queues.counts import Counts
from reference_impl.queues.errors import InvalidTask, QueueFull
from reference_impl.queues.letters import LATE, as_new, kept_reason, reason_of_failure
from reference_impl.queues.port import (
    DeadLetter,
    Fate,
    QueuedTask,
    QueueStatistics,
    bounded_delay_s,
)

__all__ = ["DELIVERY_LIMIT", "LEVELS", "QueueBook"]

LEVELS = 10
# Twenty is what quorum queues allow since RabbitMQ 4.0.
DELIVERY_LIMIT = 20


class _Consumer:
    """A connection: what it holds, by task id, each with its copies; and what it did."""

    __slots__ = ("counts", "held")

    def __init__(self) -> None:
        self.held: dict[str, list[Entry]] = {}
        self.counts = Counts()


class QueueBook:
    """The tasks of one queue and who holds them.

    Args:
        levels: classes of priority.
        lease_s: how long a task is held without being extended.
        capacity: tasks of all classes that may wait or be held, beyond which `add` raises QueueFull; None: no bound.
        delivery_limit: redeliveries of a task, beyond which it is dead.
        max_bytes: of a task.
    """

    def __init__(
        self,
        *,
        levels: int = LEVELS,
        lease_s: float = 60.0,
        capacity: int | None = None,
        delivery_limit: int = DELIVERY_LIMIT,
        max_bytes: int,
    ) -> None:
        if lease_s <= 0:
            raise ValueError(f"lease_s is {lease_s}: expected more than 0 seconds")
        self.lease_s = lease_s
        self._levels = levels
        self._capacity = capacity
        self._delivery_limit = delivery_limit
        self._max_bytes = max_bytes
        self._ready: ClassQueues[Entry] = ClassQueues(levels)
        self._delayed: list[tuple[float, int, Entry]] = []
        # A row for every lease ever begun or extended; one whose number is not its entry's has been overtaken.
        self._leases: list[tuple[float, int, Entry]] = []
        self._consumers: dict[int, _Consumer] = {}
        self._held = 0  # tasks that are held, each counted once however many its copies
        self._dead: deque[DeadLetter] = deque()
        self._serial = count(1)
        self._size = 0

    def new_consumer(self) -> int:
        """The number of a connection."""
        number = len(self._consumers) + 1
        self._consumers[number] = _Consumer()
        return number

    # -- producers ----------------------------------------------------------------------------------------------------

    def encode(self, tasks: Sequence[QueuedTask], now: float) -> list[Entry]:
        """The tasks as they will be kept. Raises InvalidTask."""
        return [self.encode_one(task, now) for task in tasks]

    def encode_one(self, task: QueuedTask, now: float) -> Entry:
        """`encode` of one."""
        return Entry.of(task, now, self._levels, self._max_bytes)

    def add(self, consumer: int, entries: Sequence[Entry], now: float) -> None:
        """Accept encoded tasks, all or none. Raises QueueFull."""
        self.advance(now)
        if self._capacity is not None and self._size + len(entries) > self._capacity:
            raise QueueFull(
                f"the queue holds {self._size} of {self._capacity} tasks, {len(entries)} more do not fit; try again later"
            )
        for entry in entries:
            self._ready.put(entry.level, entry)
        self._size += len(entries)
        self._consumers[consumer].counts.enqueued += len(entries)

    # -- consumers ----------------------------------------------------------------------------------------------------

    def take(self, consumer: int, max_tasks: int, now: float) -> list[QueuedTask]:
        """Hold up to `max_tasks` of what is ready."""
        taken: list[QueuedTask] = []
        while len(taken) < max_tasks and (task := self.take_one(consumer, now)) is not None:
            taken.append(task)
        return taken

    def take_one(self, consumer: int, now: float) -> QueuedTask | None:
        """Hold the next of what is ready; None if there is none."""
        self.advance(now)
        holder = self._consumers[consumer]
        while (entry := self._ready.take()) is not None:
            if now >= entry.deadline_s:
                self._bury(holder, entry, LATE, now)
                continue
            try:
                task = entry.task()
            except InvalidTask as error:
                self._bury(holder, entry, str(error), now)
                continue
            entry.consumer, entry.task_id = consumer, task.task_id
            copies = holder.held.get(task.task_id)
            if copies is None:
                holder.held[task.task_id] = [entry]
                self._held += 1
                holder.counts.delivered += 1
                self._lease(entry, now + self.lease_s)
                return task
            copies.append(entry)
            self._lease(entry, now + self.lease_s)
        return None

    def ack(self, consumer: int, task_id: str, now: float) -> bool:
        entries = self._drop(consumer, task_id, now)
        if not entries:
            return False
        self._size -= len(entries)
        self._consumers[consumer].counts.acknowledged += 1
        return True

    def nack(self, consumer: int, task_id: str, delay_s: float, reason: str, now: float) -> Fate:
        entry = self._drop_to_one(consumer, task_id, now)
        if entry is None:
            return "lost"
        holder, task = self._consumers[consumer], entry.task()
        if entry.retries >= task.max_retries:
            self._bury(holder, entry, reason_of_failure(task, reason), now)
            return "dead"
        entry.retries += 1
        entry.redeliveries = 0
        holder.counts.retried += 1
        if (delay_s := bounded_delay_s(delay_s)) > 0:
            heappush(self._delayed, (now + delay_s, next(self._serial), entry))
        else:
            self._ready.put(entry.level, entry)
        return "retry"

    def release(self, consumer: int, task_id: str, now: float) -> bool:
        entry = self._drop_to_one(consumer, task_id, now)
        if entry is None:
            return False
        self._ready.put_first(entry.level, entry)
        return True

    def reject(self, consumer: int, task_id: str, reason: str, now: float) -> bool:
        entry = self._drop_to_one(consumer, task_id, now)
        if entry is None:
            return False
        self._bury(self._consumers[consumer], entry, reason, now)
        return True

    def extend(self, consumer: int, task_id: str, lease_s: float, now: float) -> bool:
        self.advance(now)
        entries = self._consumers[consumer].held.get(task_id, ())
        for entry in entries:
            self._lease(entry, now + lease_s)
        return bool(entries)

    def leave(self, consumer: int, now: float, *, lost: bool) -> None:
        """The consumer goes: what it holds is ready again, at once; as redeliveries if it was `lost`."""
        self.advance(now)
        holder = self._consumers[consumer]
        for task_id in list(holder.held)[::-1]:
            entries = holder.held.pop(task_id)
            self._held -= 1
            if lost:
                self._redeliver(holder, entries, now, "the connection of its consumer broke")
            else:
                for entry in entries:
                    entry.lease = 0
                    self._ready.put_first(entry.level, entry)

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """What is due at `now`: retries become ready, leases end."""
        while self._delayed and self._delayed[0][0] <= now:
            entry = heappop(self._delayed)[2]
            self._ready.put(entry.level, entry)
        while self._leases and self._leases[0][0] <= now:
            _, serial, entry = heappop(self._leases)
            if entry.lease != serial:
                continue
            holder = self._consumers[entry.consumer]
            entries = holder.held[entry.task_id]
            entries.remove(entry)
            if not entries:
                del holder.held[entry.task_id]
                self._held -= 1
            self._redeliver(holder, [entry], now, "its lease ended")

    def next_due_s(self) -> float:
        """When something becomes ready by itself: infinity for never; may be early, never late."""
        delayed = self._delayed[0][0] if self._delayed else math.inf
        return min(delayed, self._leases[0][0] if self._leases else math.inf)

    # -- people -------------------------------------------------------------------------------------------------------

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        return list(islice(self._dead, limit))

    def replay(self, limit: int | None, now: float) -> int:
        """Nothing is changed where it raises; a task that fitted once fits."""
        again: list[Entry] = []
        stay: deque[DeadLetter] = deque()
        for letter in self._dead:
            if letter.task is None or (limit is not None and len(again) >= limit):
                stay.append(letter)
            else:
                again.append(
                    Entry.of(
                        as_new(letter.task, now), now, self._levels, self._max_bytes + COUNTS_BYTES
                    )
                )
        self._dead = stay
        for entry in again:
            self._ready.put(entry.level, entry)
        self._size += len(again)
        return len(again)

    def statistics(self, consumer: int, now: float) -> QueueStatistics:
        self.advance(now)
        heads = [entry.enqueued_s for entry in self._ready.heads()]
        held = sum(
            len(copies) for holder in self._consumers.values() for copies in holder.held.values()
        )
        oldest_s = now - min(heads) if heads else 0.0
        return self._consumers[consumer].counts.statistics(
            self._ready.lengths(), len(self._delayed), held, len(self._dead), oldest_s
        )

    # -- inside -------------------------------------------------------------------------------------------------------

    def _lease(self, entry: Entry, ends_s: float) -> None:
        entry.lease = serial = next(self._serial)
        heappush(self._leases, (ends_s, serial, entry))
        if len(self._leases) > 64 and len(self._leases) > 4 * self._held:
            self._leases = [row for row in self._leases if row[2].lease == row[1]]
            heapify(self._leases)

    def _drop(self, consumer: int, task_id: str, now: float) -> Sequence[Entry]:
        """End the holding; the copies that it had, none if it had ended before."""
        self.advance(now)
        entries = self._consumers[consumer].held.pop(task_id, ())
        if entries:
            self._held -= 1
            for entry in entries:
                entry.lease = 0
        return entries

    def _drop_to_one(self, consumer: int, task_id: str, now: float) -> Entry | None:
        entries = self._drop(consumer, task_id, now)
        if not entries:
            return None
        self._size -= len(entries) - 1
        return entries[0]

    def _redeliver(self, holder: _Consumer, entries: list[Entry], now: float, why: str) -> None:
        for entry in reversed(entries):
            entry.lease = 0
            entry.redeliveries += 1
            holder.counts.redelivered += 1
            if entry.redeliveries > self._delivery_limit:
                self._bury(holder, entry, f"lost {entry.redeliveries} times; {why}", now)
            else:
                self._ready.put_first(entry.level, entry)

    def _bury(self, holder: _Consumer, entry: Entry, reason: str, now: float) -> None:
        reason = kept_reason(reason)
        self._size -= 1
        holder.counts.dead_lettered += 1
        try:
            letter = DeadLetter(entry.task(), reason, now)
        except InvalidTask:
            letter = DeadLetter(None, reason, now, entry.data)
        self._dead.append(letter)
