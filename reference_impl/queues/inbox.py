"""A connection's own side of a queue whose broker is elsewhere: what has arrived, and what was handed out.

A broker delivers by class; the connection hands out by weighted turns. What arrives beyond that waits here, as held as what
was handed out: its adapter renews or returns both.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from reference_impl.queues.class_queues import ClassQueues
from reference_impl.queues.port import QueuedTask

__all__ = ["Delivery", "Inbox"]

R = TypeVar("R")


class Delivery(Generic[R]):
    """A task that arrived. `receipt` is what the broker knows it by; its lease ends at `lease_ends_s` if kept here."""

    __slots__ = ("lease_ends_s", "level", "receipt", "task")

    def __init__(self, task: QueuedTask, level: int, receipt: R) -> None:
        self.task = task
        self.level = level
        self.receipt = receipt
        self.lease_ends_s = 0.0


class Inbox(Generic[R]):
    """Arrived tasks by class, and those that are handed out, by task id, each with its copies.

    Attributes:
        arrived: set whenever something can be picked that could not before; whoever waits for it clears it.
    """

    def __init__(self, levels: int) -> None:
        self.arrived = asyncio.Event()
        self._waiting: ClassQueues[Delivery[R]] = ClassQueues(levels)
        self._held: dict[str, list[Delivery[R]]] = {}

    # -- what has arrived ---------------------------------------------------------------------------------------------

    def put(self, delivery: Delivery[R]) -> None:
        self._waiting.put(delivery.level, delivery)
        self.arrived.set()

    def put_first(self, deliveries: Sequence[Delivery[R]]) -> None:
        """Before what waits, in their order."""
        for delivery in reversed(deliveries):
            self._waiting.put_first(delivery.level, delivery)
        self.arrived.set()

    def waiting(self) -> list[Delivery[R]]:
        """What has arrived and was not handed out."""
        return list(self._waiting)

    def waiting_in(self, level: int) -> int:
        """How many of them are of one class."""
        return self._waiting.length(level)

    def withdraw(self, delivery: Delivery[R]) -> bool:
        """Hand it out no more; False if it was handed out meanwhile."""
        return self._waiting.remove(delivery.level, delivery)

    def withdraw_all(self) -> list[Delivery[R]]:
        """Hand out nothing of what waits; what that was."""
        waiting = self.waiting()
        self._waiting.clear()
        return waiting

    def pick(self, max_tasks: int, now: float) -> tuple[list[Delivery[R]], list[Delivery[R]]]:
        """Hand out up to `max_tasks`, in turns. Second: those that were next, but whose deadline has passed."""
        picked: list[Delivery[R]] = []
        late: list[Delivery[R]] = []
        while len(picked) < max_tasks and (delivery := self._waiting.take()) is not None:
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

    # -- what is handed out -------------------------------------------------------------------------------------------

    def held(self, task_id: str) -> list[Delivery[R]]:
        """The copies that are handed out as one; empty if it is not held here."""
        return self._held.get(task_id, [])

    @property
    def held_count(self) -> int:
        """Tasks that are handed out."""
        return len(self._held)

    def all_held(self) -> list[list[Delivery[R]]]:
        return list(self._held.values())

    def ended(self, now: float) -> list[list[Delivery[R]]]:
        """Those that are kept here and were not extended in time."""
        return [copies for copies in self._held.values() if now >= copies[0].lease_ends_s]

    @contextmanager
    def settling(self, copies: list[Delivery[R]]) -> Iterator[None]:
        """They are given back, and their lease does not end meanwhile: they would go back twice."""
        first = copies[0]
        ends_s, first.lease_ends_s = first.lease_ends_s, math.inf
        try:
            yield
        finally:
            first.lease_ends_s = ends_s

    def settle(self, task_id: str) -> list[Delivery[R]]:
        """End the holding; its copies."""
        return self._held.pop(task_id, [])

    def forget(self, copies: list[Delivery[R]]) -> None:
        """End the holding if these are what is held, and not others of the same id."""
        task_id = copies[0].task.task_id
        if self._held.get(task_id) is copies:
            del self._held[task_id]

    def hold(self, copies: list[Delivery[R]]) -> None:
        """Take back `settle`: it did not happen."""
        self._held[copies[0].task.task_id] = copies

    # -- when the broker takes it away --------------------------------------------------------------------------------

    def keep(self, is_ours: Callable[[Delivery[R]], bool]) -> None:
        """Of what waits, only that."""
        for delivery in self.waiting():
            if not is_ours(delivery):
                self.withdraw(delivery)

    def clear(self) -> None:
        """The connection broke: all of it belongs to the broker again."""
        self._held.clear()
        self._waiting.clear()
