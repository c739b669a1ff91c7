"""What a broker knows of its tasks: the port's semantics as a state machine, without time, waiting or wires.

Every call is told the instant. The queue in memory is this book; the virtual broker is this book behind a network. It keeps
tasks as their bytes, so that what a consumer does to a payload stays with that consumer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count, islice

import msgspec

from reference_impl.queues.codec import decode_task, encode_task
from reference_impl.queues.errors import QueueFull
from reference_impl.queues.port import DeadLetter, Fate, QueuedTask, QueueStatistics
from reference_impl.queues.weighted_round import WeightedRound, level_of

__all__ = ["DELIVERY_LIMIT", "LEVELS", "QueueBook"]

LEVELS = 10
# Twenty is what quorum queues allow since RabbitMQ 4.0.
DELIVERY_LIMIT = 20

_replace = msgspec.structs.replace


class _Entry:
    """A task in the book. `lease` numbers its present lease; 0: it is not held."""

    __slots__ = ("data", "deadline_s", "enqueued_s", "lease", "level", "redeliveries", "retries")

    def __init__(
        self, data: bytes, level: int, enqueued_s: float, deadline_s: float, retries: int
    ) -> None:
        self.data = data
        self.level = level
        self.enqueued_s = enqueued_s
        self.deadline_s = deadline_s
        self.retries = retries
        self.redeliveries = 0
        self.lease = 0

    def task(self) -> QueuedTask:
        task = decode_task(self.data)
        if self.retries != task.retry_count or self.redeliveries:
            return _replace(task, retry_count=self.retries, redeliveries=self.redeliveries)
        return task


class _Counts:
    __slots__ = (
        "acknowledged",
        "dead_lettered",
        "delivered",
        "enqueued",
        "redelivered",
        "retried",
    )

    def __init__(self) -> None:
        self.enqueued = self.delivered = self.acknowledged = 0
        self.retried = self.redelivered = self.dead_lettered = 0


class QueueBook:
    """The tasks of one queue and who holds them.

    Args:
        levels: classes of priority.
        lease_s: how long a task is held without being extended.
        capacity: tasks that may wait or be held, beyond which `add` raises QueueFull; None: no bound.
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
        self._turns = WeightedRound(levels)
        self._ready: list[deque[_Entry]] = [deque() for _ in range(levels)]
        self._delayed: list[tuple[float, int, _Entry]] = []
        # Who holds what: (consumer, task id) -> the copies. The heap has a row for every lease ever begun or extended;
        # a row whose number is not its entry's has been overtaken.
        self._held: dict[tuple[int, str], list[_Entry]] = {}
        self._leases: list[tuple[float, int, int, str, _Entry]] = []
        self._dead: deque[DeadLetter] = deque()
        self._serial = count(1)
        self._consumers = count(1)
        self._size = 0
        self._counts: dict[int, _Counts] = {}

    def new_consumer(self) -> int:
        """The number of a connection."""
        consumer = next(self._consumers)
        self._counts[consumer] = _Counts()
        return consumer

    # -- producers ----------------------------------------------------------------------------------------------------

    def encode(self, tasks: Sequence[QueuedTask], now: float) -> list[tuple[QueuedTask, bytes]]:
        """The tasks as they will be kept. Raises InvalidTask."""
        stamped = [t if t.enqueued_s is not None else _replace(t, enqueued_s=now) for t in tasks]
        return [(task, encode_task(task, self._max_bytes)) for task in stamped]

    def add(self, consumer: int, tasks: Sequence[tuple[QueuedTask, bytes]], now: float) -> None:
        """Accept encoded tasks, all or none. Raises QueueFull."""
        self.advance(now)
        if self._capacity is not None and self._size + len(tasks) > self._capacity:
            raise QueueFull(
                f"the queue holds {self._size} of {self._capacity} tasks, {len(tasks)} more do not fit; try again later"
            )
        for task, data in tasks:
            level = level_of(task.priority, self._levels)
            deadline_s = math.inf if task.deadline_s is None else task.deadline_s
            enqueued_s = now if task.enqueued_s is None else task.enqueued_s
            self._ready[level].append(_Entry(data, level, enqueued_s, deadline_s, task.retry_count))
        self._size += len(tasks)
        self._counts[consumer].enqueued += len(tasks)

    # -- consumers ----------------------------------------------------------------------------------------------------

    def take(self, consumer: int, max_tasks: int, now: float) -> list[QueuedTask]:
        """Hold up to `max_tasks` of what is ready."""
        self.advance(now)
        taken: list[QueuedTask] = []
        while len(taken) < max_tasks:
            level = self._turns.choose(self._ready)
            if level is None:
                break
            entry = self._ready[level].popleft()
            task = entry.task()
            if now >= entry.deadline_s:
                self._bury(consumer, entry, "its deadline passed while it waited", now)
                continue
            copies = self._held.setdefault((consumer, task.task_id), [])
            copies.append(entry)
            self._lease(consumer, task.task_id, entry, now + self.lease_s)
            if len(copies) == 1:
                taken.append(task)
        self._counts[consumer].delivered += len(taken)
        return taken

    def ack(self, consumer: int, task_id: str, now: float) -> bool:
        entries = self._drop(consumer, task_id, now)
        if not entries:
            return False
        self._size -= len(entries)
        self._counts[consumer].acknowledged += 1
        return True

    def nack(self, consumer: int, task_id: str, delay_s: float, reason: str, now: float) -> Fate:
        entry = self._drop_to_one(consumer, task_id, now)
        if entry is None:
            return "lost"
        if entry.retries >= decode_task(entry.data).max_retries:
            self._bury(consumer, entry, f"failed {entry.retries + 1} times: {reason}", now)
            return "dead"
        entry.retries += 1
        entry.redeliveries = 0
        self._counts[consumer].retried += 1
        if delay_s > 0:
            heappush(self._delayed, (now + delay_s, next(self._serial), entry))
        else:
            self._ready[entry.level].append(entry)
        return "retry"

    def release(self, consumer: int, task_id: str, now: float) -> bool:
        entry = self._drop_to_one(consumer, task_id, now)
        if entry is None:
            return False
        self._ready[entry.level].appendleft(entry)
        return True

    def reject(self, consumer: int, task_id: str, reason: str, now: float) -> bool:
        entry = self._drop_to_one(consumer, task_id, now)
        if entry is None:
            return False
        self._bury(consumer, entry, reason, now)
        return True

    def extend(self, consumer: int, task_id: str, lease_s: float, now: float) -> bool:
        self.advance(now)
        entries = self._held.get((consumer, task_id), ())
        for entry in entries:
            self._lease(consumer, task_id, entry, now + lease_s)
        return bool(entries)

    def leave(self, consumer: int, now: float, *, lost: bool) -> None:
        """The consumer goes: what it holds is ready again, at once; as redeliveries if it was `lost`."""
        self.advance(now)
        for holder, task_id in [held for held in self._held if held[0] == consumer][::-1]:
            entries = self._held.pop((holder, task_id))
            if lost:
                self._redeliver(consumer, entries, now, "the connection of its consumer broke")
            else:
                for entry in entries:
                    entry.lease = 0
                    self._ready[entry.level].appendleft(entry)

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """What is due at `now`: retries become ready, leases end."""
        while self._delayed and self._delayed[0][0] <= now:
            entry = heappop(self._delayed)[2]
            self._ready[entry.level].append(entry)
        while self._leases and self._leases[0][0] <= now:
            _, serial, consumer, task_id, entry = heappop(self._leases)
            if entry.lease != serial:
                continue
            entries = self._held[consumer, task_id]
            entries.remove(entry)
            if not entries:
                del self._held[consumer, task_id]
            self._redeliver(consumer, [entry], now, "its lease ended")

    def next_due_s(self) -> float:
        """When something becomes ready by itself: infinity for never; may be early, never late."""
        delayed = self._delayed[0][0] if self._delayed else math.inf
        return min(delayed, self._leases[0][0] if self._leases else math.inf)

    # -- people -------------------------------------------------------------------------------------------------------

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        return list(islice(self._dead, limit))

    def replay(self, limit: int | None, now: float) -> int:
        replayed = 0
        kept: deque[DeadLetter] = deque()
        while self._dead and (limit is None or replayed < limit):
            letter = self._dead.popleft()
            if letter.task is None:
                kept.append(letter)
                continue
            task = _replace(
                letter.task, retry_count=0, redeliveries=0, enqueued_s=now, deadline_s=None
            )
            level = level_of(task.priority, self._levels)
            data = encode_task(task, self._max_bytes)
            self._ready[level].append(_Entry(data, level, now, math.inf, 0))
            self._size += 1
            replayed += 1
        self._dead.extendleft(reversed(kept))
        return replayed

    def statistics(self, consumer: int, now: float) -> QueueStatistics:
        self.advance(now)
        heads = [tasks[0].enqueued_s for tasks in self._ready if tasks]
        counts = self._counts[consumer]
        return QueueStatistics(
            ready=tuple(map(len, self._ready)),
            delayed=len(self._delayed),
            held=sum(map(len, self._held.values())),
            dead=len(self._dead),
            oldest_s=now - min(heads) if heads else 0.0,
            enqueued=counts.enqueued,
            delivered=counts.delivered,
            acknowledged=counts.acknowledged,
            retried=counts.retried,
            redelivered=counts.redelivered,
            dead_lettered=counts.dead_lettered,
        )

    # -- inside -------------------------------------------------------------------------------------------------------

    def _lease(self, consumer: int, task_id: str, entry: _Entry, ends_s: float) -> None:
        entry.lease = serial = next(self._serial)
        heappush(self._leases, (ends_s, serial, consumer, task_id, entry))
        if len(self._leases) > 64 and len(self._leases) > 4 * len(self._held):
            self._leases = [row for row in self._leases if row[4].lease == row[1]]
            self._leases.sort(key=lambda row: row[:2])

    def _drop(self, consumer: int, task_id: str, now: float) -> list[_Entry]:
        """End the holding; the copies that it had, none if it had ended before."""
        self.advance(now)
        entries = self._held.pop((consumer, task_id), [])
        for entry in entries:
            entry.lease = 0
        return entries

    def _drop_to_one(self, consumer: int, task_id: str, now: float) -> _Entry | None:
        entries = self._drop(consumer, task_id, now)
        if not entries:
            return None
        self._size -= len(entries) - 1
        return entries[0]

    def _redeliver(self, consumer: int, entries: list[_Entry], now: float, why: str) -> None:
        for entry in reversed(entries):
            entry.lease = 0
            entry.redeliveries += 1
            self._counts[consumer].redelivered += 1
            if entry.redeliveries > self._delivery_limit:
                self._bury(consumer, entry, f"lost {entry.redeliveries} times; {why}", now)
            else:
                self._ready[entry.level].appendleft(entry)

    def _bury(self, consumer: int, entry: _Entry, reason: str, now: float) -> None:
        self._size -= 1
        self._counts[consumer].dead_lettered += 1
        self._dead.append(DeadLetter(entry.task(), reason, now))
