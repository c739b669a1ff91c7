"""What waits, by class, and leaves in weighted turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from reference_impl.queues.weighted_round import WeightedRound

__all__ = ["ClassQueues"]

T = TypeVar("T")


class ClassQueues(Generic[T]):
    """A queue a class; `take` serves them as `WeightedRound` says."""

    __slots__ = ("_alone", "_alone_level", "_queues", "_turns", "_waiting")

    def __init__(self, levels: int) -> None:
        self._turns = WeightedRound(levels)
        self._queues: list[deque[T]] = [deque() for _ in range(levels)]
        # A bit a class in which something waits; and the value of that at the last choice, if it was one class alone. A
        # class that is still alone has its turn without being weighed: most of the time one is.
        self._waiting = 0
        self._alone = 0
        self._alone_level = 0

    def put(self, level: int, item: T) -> None:
        self._waiting |= 1 << level
        self._queues[level].append(item)

    def put_first(self, level: int, item: T) -> None:
        self._waiting |= 1 << level
        self._queues[level].appendleft(item)

    def take(self) -> T | None:
        """The next; None if nothing waits."""
        waiting = self._waiting
        if waiting == self._alone and waiting:
            level = self._alone_level
        else:
            chosen = self._turns.choose(self._queues)
            if chosen is None:
                return None
            level = chosen
            self._alone = waiting if waiting == 1 << level else 0
            self._alone_level = level
        queue = self._queues[level]
        item = queue.popleft()
        if not queue:
            self._waiting ^= 1 << level
        return item

    def remove(self, level: int, item: T) -> bool:
        """Whether it still waited."""
        queue = self._queues[level]
        if item not in queue:
            return False
        queue.remove(item)
        if not queue:
            self._waiting ^= 1 << level
        return True

    def length(self, level: int) -> int:
        return len(self._queues[level])

    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self._queues))

    def heads(self) -> list[T]:
        """The first of every class in which something waits."""
        return [queue[0] for queue in self._queues if queue]

    def __bool__(self) -> bool:
        return self._waiting != 0

    def __iter__(self) -> Iterator[T]:
        """All that wait, class by class, from the least urgent; of this instant."""
        return iter([item for queue in self._queues for item in queue])

    def clear(self) -> None:
        self._waiting = 0
        for queue in self._queues:
            queue.clear()
