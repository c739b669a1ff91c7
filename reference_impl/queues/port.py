"""The port to a queue of tasks, and the semantics that every adapter keeps.

**At least once.** A task is accepted when `enqueue` returns, and from then on it is somewhere until it is acknowledged:
ready, delayed, held by a consumer, or among the dead letters. If `enqueue` raises `QueueUnavailable` the task may or may not
have been accepted; it is enqueued again, and may then run twice. Nobody gives exactly-once *effects*; those come from the
idempotency key (`effects.py`).

**Full.** A bound is soft: it turns producers away (`QueueFull`), what is given back is not lost by it, and producers that come at
once may pass it by what is under way. Of a batch that a broker turns away some tasks may be accepted, and which is not told: all
are enqueued again later, under the same idempotency keys. What is bounded differs: tasks of all classes that wait or are held, in
memory; those that wait in one class, on RabbitMQ (`capacity`); the server's memory, on Redis.

**Held under a lease.** `dequeue` hands a task to one consumer for `lease_s`. The consumer then does one of these:

========== ====================================================================================== =================
call       what happens to the task                                                               counts as
========== ====================================================================================== =================
`ack`      gone: its work is done                                                                 -
`nack`     ready again after at least `delay_s` (24 d at most); beyond `max_retries` it is dead     a retry
`release`  ready again at once: nothing was tried                                                 -
`reject`   dead, with its reason                                                                  -
`extend`   stays held for `lease_s` from now                                                      -
nothing    when the lease ends, the connection breaks or the process dies, it is ready again      a redelivery
========== ====================================================================================== =================

Each returns False (`nack`: "lost") when the task is no longer held here; it then belongs to someone else, and nothing was
changed. A task that was redelivered more than `delivery_limit` times kills its consumers, and is dead.

**Order.** Priorities are classes, 0 the least urgent; those above the highest class share it. Classes take turns by weight
(`weighted_round.py`), so that an urgent task waits at most one round, and the least urgent is never starved. Within a class
tasks leave in the order in which one producer enqueued them, for as long as nothing fails: a retry goes to the end, and a
redelivery comes as soon as it can.

**Dead letters** keep the task, or the bytes if they were no task, with reason and instant, until they are replayed (with
their counts at zero) or deleted. A task whose deadline has passed is dead when it is next to be handed out. Nothing else ends
without a trace.

**Two copies** of a task id may exist (enqueued twice, or redelivered while still held). The copy that reaches the consumer
that holds the other is not handed out, and is settled with it.

**Clock.** `enqueued_s` and `deadline_s` are instants of the clock that the queue's users share (`clock`): Unix time where
brokers are real, the loop's time in memory and in virtual time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from reference_impl.queues.errors import InvalidTask

__all__ = [
    "LONGEST_DELAY_S",
    "DeadLetter",
    "Fate",
    "MessageQueue",
    "QueueStatistics",
    "QueuedTask",
    "bounded_delay_s",
]

# RabbitMQ's longest delay queue holds a message for a little more.
LONGEST_DELAY_S = 24 * 86_400.0

# What became of a task that was given back with `nack`.
Fate = Literal["retry", "dead", "lost"]


def bounded_delay_s(delay_s: float) -> float:
    """The wait that `nack` is asked for, as every adapter can hold it; 0 for what is no number."""
    return max(0.0, min(delay_s, LONGEST_DELAY_S))


class QueuedTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of work for a handler of `task_type`.

    Raises InvalidTask where a text is empty or a number negative; fields of a wrong type are refused when it is enqueued.

    Attributes:
        task_id: the producer's name for it.
        payload: anything JSON can say; tuples arrive as lists and keys as text.
        priority: class, from 0; the higher the more urgent.
        retry_count, max_retries: attempts that failed, and how many may.
        enqueued_s: when it was first accepted; filled in by the queue.
        deadline_s: when its result is of no use any more; None: never.
        idempotency_key: equal for tasks that must take effect once; "": the task's id.
        trace_context: headers of distributed tracing (W3C `traceparent`), carried along.
        redeliveries: leases of this attempt that were lost so far, where the broker counts them; filled in by the queue.
        earlier_attempts: those before it was replayed from the dead letters; filled in by the replay.
    """

    task_id: str
    task_type: str
    payload: Any
    priority: int = 0
    retry_count: int = 0
    max_retries: int = 3
    enqueued_s: float | None = None
    deadline_s: float | None = None
    idempotency_key: str = ""
    trace_context: Mapping[str, str] = {}
    redeliveries: int = 0
    earlier_attempts: int = 0

    def __post_init__(self) -> None:
        try:
            if (
                self.task_id
                and self.task_type
                and self.priority >= 0
                and self.retry_count >= 0
                and self.max_retries >= 0
            ):
                return  # first, because every task that arrives comes through here
        except TypeError as error:
            raise InvalidTask(
                f"task {self.task_id!r}: priority ({self.priority!r}), retry_count ({self.retry_count!r}) and "
                f"max_retries ({self.max_retries!r}) must be whole numbers"
            ) from error
        if not self.task_id or not self.task_type:
            empty = "task_id" if not self.task_id else "task_type"
            raise InvalidTask(f"{empty} is empty: give a text")
        raise InvalidTask(
            f"task {self.task_id!r}: priority ({self.priority}), retry_count ({self.retry_count}) and max_retries "
            f"({self.max_retries}) must not be negative"
        )

    @property
    def key(self) -> str:
        """What names its effect."""
        return self.idempotency_key or self.task_id


class DeadLetter(msgspec.Struct, frozen=True):
    """A task that nobody could finish. `task` is None where the bytes in `raw` were no task."""

    task: QueuedTask | None
    reason: str
    died_s: float
    raw: bytes = b""


class QueueStatistics(msgspec.Struct, frozen=True):
    """The queue at this instant, and what this connection did since it was made. None: the broker cannot tell.

    Attributes:
        ready: tasks that wait to be handed out, by class.
        delayed: waiting for their retry. held: under a lease, of any consumer. dead: dead letters.
        oldest_s: age of the oldest ready task.
        enqueued, delivered, acknowledged, retried, redelivered, dead_lettered: counts of this connection.
    """

    ready: tuple[int, ...]
    delayed: int | None
    held: int | None
    dead: int
    oldest_s: float | None
    enqueued: int = 0
    delivered: int = 0
    acknowledged: int = 0
    retried: int = 0
    redelivered: int = 0
    dead_lettered: int = 0

    @property
    def depth(self) -> int:
        """Tasks that wait, ready or delayed."""
        return sum(self.ready) + (self.delayed or 0)


class MessageQueue(ABC):
    """One connection to a queue; see the module for what its calls mean.

    Every call may raise `QueueUnavailable`, `AccessRefused`, `QueueMismatch` or `QueueClosed`. A call that is cancelled may
    have happened.

    Attributes:
        lease_s: for how long a task is held without being extended.
    """

    lease_s: float

    @abstractmethod
    async def enqueue_many(self, tasks: Sequence[QueuedTask]) -> list[str]:
        """Accept tasks, in their order; returns their ids once all are accepted.

        Raises:
            InvalidTask: one of them is none, or is too large; nothing was accepted.
            QueueFull: there is no room for all; some may have been accepted (in memory none).
            QueueUnavailable: any of them may or may not have been accepted.
        """

    @abstractmethod
    async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
        """Hold up to `max_tasks`; waits up to `wait_s` (`math.inf`: for ever) for the first, and for no other."""

    @abstractmethod
    async def ack_many(self, task_ids: Sequence[str]) -> list[bool]:
        """`ack` for many."""

    @abstractmethod
    async def nack(self, task_id: str, delay_s: float = 0.0, reason: str = "") -> Fate:
        """The attempt failed for `reason`: retry after at least `delay_s`, or bury after the last retry.

        A longer delay than `LONGEST_DELAY_S` becomes that one: a peer may ask for any (`retry-after`).
        """

    @abstractmethod
    async def release(self, task_id: str) -> bool:
        """Hand back what was not tried."""

    @abstractmethod
    async def reject(self, task_id: str, reason: str) -> bool:
        """Bury: no retry can help."""

    @abstractmethod
    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        """Hold for `lease_s` from now; at most, and by default, the queue's own. Raises ValueError beyond it."""

    @abstractmethod
    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest dead letters, left where they are."""

    @abstractmethod
    async def replay_dead_letters(self, limit: int | None = None) -> int:
        """Make the oldest dead letters that are tasks ready again; returns how many. What is no task stays."""

    @abstractmethod
    async def statistics(self) -> QueueStatistics: ...

    @abstractmethod
    async def close(self) -> None:
        """Hand back what is held and release connections; a second call does nothing."""

    async def enqueue(self, task: QueuedTask) -> str:
        """Accept one task; see `enqueue_many`."""
        return (await self.enqueue_many((task,)))[0]

    async def dequeue(self, wait_s: float = 0.0) -> QueuedTask | None:
        """Hold one task; None if there is none within `wait_s`."""
        tasks = await self.dequeue_many(1, wait_s)
        return tasks[0] if tasks else None

    async def ack(self, task_id: str) -> bool:
        """The work is done: forget the task."""
        return (await self.ack_many((task_id,)))[0]

    def checked_lease_s(self, lease_s: float | None) -> float:
        """The length that `extend` is asked for. Raises ValueError."""
        if lease_s is None:
            return self.lease_s
        if not 0 < lease_s <= self.lease_s:
            raise ValueError(
                f"lease_s is {lease_s}: expected more than 0 and at most the queue's {self.lease_s:g}"
            )
        return lease_s
