"""A connection's own side of a queue whose broker is elsewhere: what has arrived, and what was handed out.

A broker delivers by class; the connection hands out by weighted turns. What arrives beyond that waits here, as held as what
was handed out: its adapter renews or returns both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from reference_impl.queues.port import QueuedTask, QueueStatistics
from reference_impl.queues.weighted_round import WeightedRound

__all__ = ["Counts", "Delivery", "Inbox"]

R = TypeVar("R")


class Delivery(Generic[R]):
    """A task that arrived. `receipt` is what the broker knows it by; its lease ends at `lease_ends_s` if kept here."""

    __slots__ = ("lease_ends_s", "level", "receipt", "task")

    def __init__(self, task: QueuedTask, level: int, receipt: R) -> None:
        self.task = task
        self.level = level
        self.receipt = receipt
        self.lease_ends_s = 0.0


class Counts:
    """What this connection did; see `QueueStatistics`."""

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

    def statistics(
        self,
        ready: tuple[int, ...],
        delayed: int | None,
        held: int | None,
        dead: int,
        oldest_s: float | None,
    ) -> QueueStatistics:
        return QueueStatistics(
            ready=ready,
            delayed=delayed,
            held=held,
            dead=dead,
            oldest_s=oldest_s,
            enqueued=self.enqueued,
            delivered=self.delivered,
            acknowledged=self.acknowledged,
            retried=self.retried,
            redelivered=self.redelivered,
            dead_lettered=self.dead_lettered,
        )


class Inbox(Generic[R]):
    """Arrived tasks by class, and those that are handed out, by task id, each with its copies."""

    def __init__(self, levels: int) -> None:
        self.arrived: list[deque[Delivery[R]]] = [deque() for _ in range(levels)]
        self._turns = WeightedRound(levels)
        self._held: dict[str, list[Delivery[R]]] = {}

    def put(self, delivery: Delivery[R]) -> None:
        self.arrived[delivery.level].append(delivery)

    def put_first(self, delivery: Delivery[R]) -> None:
        self.arrived[delivery.level].appendleft(delivery)

    def pick(self, max_tasks: int, now: float) -> tuple[list[Delivery[R]], list[Delivery[R]]]:
        """Hand out up to `max_tasks`, in turns. Second: those that were next, but whose deadline has passed."""
        picked: list[Delivery[R]] = []
        late: list[Delivery[R]] = []
        while len(picked) < max_tasks:
            level = self._turns.choose(self.arrived)
            if level is None:
                break
            delivery = self.arrived[level].popleft()
            task = delivery.task
            if task.deadline_s is not None and now >= task.deadline_s:
                late.append(delivery)
                continue
            copies = self._held.get(task.task_id)
            if copies is None:
                self._held[task.task_id] = [delivery]
                picked.append(delivery)
            else:
                copies.append(delivery)
        return picked, late

    def held(self, task_id: str) -> list[Delivery[R]]:
        """The copies that are handed out as one; empty if it is not held here."""
        return self._held.get(task_id, [])

    @property
    def held_count(self) -> int:
        """Tasks that are handed out."""
        return len(self._held)

    def all_held(self) -> Iterator[list[Delivery[R]]]:
        yield from list(self._held.values())

    def settle(self, task_id: str) -> list[Delivery[R]]:
        """End the holding; its copies."""
        return self._held.pop(task_id, [])

    def hold(self, deliveries: list[Delivery[R]]) -> None:
        """Take back `settle`: it did not happen."""
        self._held[deliveries[0].task.task_id] = deliveries

    def waiting(self) -> Iterator[Delivery[R]]:
        """What has arrived and was not handed out."""
        for deliveries in self.arrived:
            yield from deliveries

    def clear(self) -> None:
        """The connection broke: all of it belongs to the broker again."""
        self._held.clear()
        for deliveries in self.arrived:
            deliveries.clear()
