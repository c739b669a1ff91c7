"""The topics of a queue on Kafka.

- `{name}.{level}`: a topic a class of priority.
- `{name}.retry.{wait}s`: what waits for its retry; see `kafka_retries.py`.
- `{name}.dead`: what nobody could finish, in one partition.
"""

from __future__ import annotations

import zlib
from typing import Any

from aiokafka import TopicPartition

from reference_impl.queues.errors import QueueMismatch
from reference_impl.queues.kafka_retries import retry_topics
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.weighted_round import level_of

__all__ = ["Topics"]


class Topics:
    """Topics of the queue `name`, of which `partitions` are used in each."""

    def __init__(self, name: str, levels: int, partitions: int) -> None:
        self.name = name
        self.classes = [f"{name}.{level}" for level in range(levels)]
        self.retries = retry_topics(name)
        self.dead = f"{name}.dead"
        self._partitions = partitions

    @property
    def dead_partition(self) -> TopicPartition:
        return TopicPartition(self.dead, 0)

    def topic_of(self, task: QueuedTask) -> str:
        return self.classes[level_of(task.priority, len(self.classes))]

    def partition_of(self, task: QueuedTask) -> int:
        """The same for every copy of a task."""
        return zlib.crc32(task.task_id.encode()) % self._partitions

    def level_of(self, topic: str) -> int:
        return self.classes.index(topic)

    async def check(self, producer: Any, where: str) -> None:
        """Have them exist, where the cluster makes topics that are asked for, as they are used here. Raises QueueMismatch."""
        names = (await producer.client.fetch_all_metadata()).topics()
        there, here = 0, len(self.classes)
        while f"{self.name}.{there}" in names:
            there += 1
        if there not in (0, here):
            raise QueueMismatch(
                f"the queue at {where} was made with levels={there}, here it is {here}: use the same, or another name"
            )
        # The least urgent last: where it exists, all do.
        for topic in [self.dead, *reversed(self.classes)]:
            number = len(await producer.partitions_for(topic))
            if number < self._partitions:
                raise QueueMismatch(
                    f"topic {topic!r} at {where} has partitions={number}, here it is {self._partitions}: add some to the topic, "
                    "or use fewer"
                )


async def partitions_of(producer: Any, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, n) for n in sorted(await producer.partitions_for(topic))]
