"""Tasks that are fetched from Kafka, and which of their offsets may be committed.

A consumer that has enough goes on polling, for nothing, so it is never taken for dead while a handler runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from reference_impl.queues.codec import decode_task
from reference_impl.queues.counts import Counts
from reference_impl.queues.errors import InvalidTask
from reference_impl.queues.inbox import Delivery, Inbox
from reference_impl.queues.kafka_letters import letter_headers
from reference_impl.queues.kafka_offsets import Offsets, Place
from reference_impl.queues.kafka_topics import Topics

__all__ = ["KafkaReceiver"]

logger = logging.getLogger(__name__)

_POLL_MS: Final = 50
_PAUSE_S: Final = 0.2
# Records that are no tasks and could not be buried yet, beyond which nothing more is fetched.
_MOST_UNREADABLE: Final = 100
# Who asks for so many at once wants throughput.
_MANY: Final = 50


class KafkaReceiver(ConsumerRebalanceListener):  # type: ignore[misc]
    """Puts what `consumer` fetches into `inbox`. It is the listener of that consumer's group.

    Args:
        producer: sends what is no task to the dead letters. counts: where such burials are noted.
        clock: of the instants of burials.

    Attributes:
        wanted: for how many tasks of a class somebody here asks.
    """

    def __init__(
        self,
        consumer: Any,
        producer: Any,
        topics: Topics,
        inbox: Inbox[Place],
        offsets: Offsets,
        counts: Counts,
        clock: Callable[[], float],
    ) -> None:
        self.wanted = 1
        self._consumer = consumer
        self._producer = producer
        self._topics = topics
        self._inbox = inbox
        self._offsets = offsets
        self._counts = counts
        self._clock = clock
        self._unreadable: deque[tuple[Place, bytes, str]] = deque()
        self._unreadable_came = asyncio.Event()
        self._taken = asyncio.Event()

    def took(self) -> None:
        """Something was handed out, so that more may be wanted."""
        self._taken.set()

    async def fetch(self) -> None:
        """Until it is cancelled."""
        while True:
            self._taken.clear()
            wanted = self._wanted_partitions()
            all_wanted = len(wanted) == len(self._consumer.assignment())
            self._pause_others(wanted)
            try:
                fetched = await self._consumer.getmany(
                    *self._asked_for(wanted),
                    timeout_ms=_POLL_MS if all_wanted else 0,
                    max_records=max(self.wanted, 10),
                )
            except KafkaError as error:
                logger.warning("Kafka is away, trying on: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            # Without a wait: what was fetched is not fetched again, so all of it is noted before anything can fail.
            for partition, records in fetched.items():
                for record in records:
                    self._receive(partition, record)
            if not (all_wanted or fetched):
                await self._until_taken()

    def _wanted_partitions(self) -> list[TopicPartition]:
        """Of the classes of which there is not enough."""
        if len(self._unreadable) >= _MOST_UNREADABLE:
            return []
        return [
            partition
            for partition in sorted(self._consumer.assignment())
            if self._inbox.waiting_in(self._topics.level_of(partition.topic)) < self.wanted
        ]

    def _asked_for(self, wanted: list[TopicPartition]) -> list[TopicPartition]:
        """Nothing named stands for all; a partition that is not ours gives nothing, and the group sees that we are alive."""
        if self.wanted < _MANY:
            return []
        return wanted or [self._topics.dead_partition]

    def _pause_others(self, wanted: list[TopicPartition]) -> None:
        """Only where few are taken at a time.

        A pause throws away what was fetched and not asked for yet, so the next request is answered at once, and brings what
        is more urgent by now. Who takes many would fetch all of it again and again.
        """
        for partition in self._consumer.assignment():
            pause = self.wanted < _MANY and partition not in wanted
            if pause != (partition in self._consumer.paused()):
                (self._consumer.pause if pause else self._consumer.resume)(partition)

    async def _until_taken(self) -> None:
        try:
            async with asyncio.timeout(_POLL_MS / 1000):
                await self._taken.wait()
        except TimeoutError:
            return

    def _receive(self, partition: TopicPartition, record: Any) -> None:
        place = self._offsets.delivered(partition, record.offset)
        data = record.value or b""
        try:
            task = decode_task(data)
        except InvalidTask as error:
            self._set_aside(place, data, str(error))
            return
        except Exception as error:
            logger.exception("a record that could not be read is buried")
            self._set_aside(place, data, f"{type(error).__name__} while it was read")
            return
        self._inbox.put(Delivery(task, self._topics.level_of(partition.topic), place))

    def _set_aside(self, place: Place, data: bytes, reason: str) -> None:
        self._unreadable.append((place, data, reason))
        self._unreadable_came.set()

    async def bury_unreadable(self) -> None:
        """Until it is cancelled. What cannot be sent stays, and its offset is not passed; tasks come meanwhile."""
        while True:
            await self._unreadable_came.wait()
            try:
                while self._unreadable:
                    place, data, reason = self._unreadable[0]
                    if self._offsets.is_ours(place):
                        await self._send_dead(data, reason)
                    self._unreadable.popleft()
                    self._offsets.done(place)
                    await self._offsets.commit(self._consumer)
                self._unreadable_came.clear()
            except KafkaError as error:
                logger.warning("a record that is no task could not be buried, trying on: %s", error)
                await asyncio.sleep(_PAUSE_S)

    async def _send_dead(self, data: bytes, reason: str) -> None:
        await self._producer.send_and_wait(
            self._topics.dead, data, partition=0, headers=letter_headers(reason, self._clock())
        )
        self._counts.dead_lettered += 1

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """What came from these partitions belongs to their next owner; what was done is told first."""
        try:
            await self._offsets.commit(self._consumer)
        except KafkaError as error:
            logger.warning("what was done in lost partitions comes again: %s", error)
        for partition in sorted(revoked):
            self._offsets.revoked(partition)
        self._inbox.keep(lambda delivery: self._offsets.is_ours(delivery.receipt))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """They are fetched from where the group is."""
