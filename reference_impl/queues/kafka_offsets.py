"""Which offsets of Kafka may be committed when tasks of a partition end in any order."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from aiokafka import TopicPartition

__all__ = ["Offsets", "Place"]


class Place(NamedTuple):
    """A record's place; `generation` counts how often its partition was assigned to this connection."""

    partition: TopicPartition
    offset: int
    generation: int


class Offsets:
    """Deliveries of the partitions that are assigned. A commit says "all below": so the oldest that is not done bounds it."""

    def __init__(self) -> None:
        self._generations: dict[TopicPartition, int] = {}
        self._open: dict[TopicPartition, dict[int, None]] = {}
        self._next: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._committing = asyncio.Lock()

    def delivered(self, partition: TopicPartition, offset: int) -> Place:
        self._open.setdefault(partition, {})[offset] = None
        self._next[partition] = offset + 1
        return Place(partition, offset, self._generations.setdefault(partition, 0))

    def is_ours(self, place: Place) -> bool:
        """Whether the partition was not taken away since."""
        return self._generations.get(place.partition) == place.generation

    def done(self, place: Place) -> None:
        if self.is_ours(place):
            self._open[place.partition].pop(place.offset, None)

    def revoked(self, partition: TopicPartition) -> None:
        self._generations[partition] = self._generations.get(partition, 0) + 1
        for kept in (self._open, self._next, self._committed):
            kept.pop(partition, None)

    def to_commit(self) -> dict[TopicPartition, int]:
        """Positions that have moved since they were last committed."""
        moved = {}
        for partition, following in self._next.items():
            position = next(iter(self._open[partition]), following)
            if position != self._committed.get(partition):
                moved[partition] = position
        return moved

    async def commit(self, consumer: Any) -> None:
        """One at a time; whoever waited for the last finds nothing left to commit."""
        async with self._committing:
            positions = self.to_commit()
            if positions:
                await consumer.commit(positions)
                self._committed.update(positions)
