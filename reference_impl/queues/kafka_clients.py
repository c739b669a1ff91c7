"""The clients of Kafka that a queue needs, set up alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener

from reference_impl.queues.kafka_topics import partitions_of

__all__ = ["KafkaClients", "lag"]

_FETCH_WAIT_MS: Final = 50
# What a message has beside the task.
_ENVELOPE_BYTES: Final = 64 * 1024


class KafkaClients:
    """Makes them for the cluster at `url`.

    Args:
        in_group: consumers share their partitions with their group; else they take all.
        max_bytes: of a task. timeout_s: of one request. session_timeout_s: after which a silent member is given up.
    """

    def __init__(
        self,
        url: str,
        *,
        in_group: bool,
        max_bytes: int,
        timeout_s: float,
        session_timeout_s: float,
    ) -> None:
        self._url = url
        self._in_group = in_group
        self._most_bytes = max_bytes + _ENVELOPE_BYTES
        self._timeout_ms = round(timeout_s * 1000)
        self._session_timeout_ms = round(session_timeout_s * 1000)

    def producer(self) -> Any:
        """Not started. It writes each message once, in order, and waits until all replicas have it."""
        return AIOKafkaProducer(
            bootstrap_servers=self._url,
            enable_idempotence=True,
            max_request_size=self._most_bytes,
            request_timeout_ms=self._timeout_ms,
        )

    def consumer(self, group: str) -> Any:
        """Not started, and without topics."""
        return AIOKafkaConsumer(
            bootstrap_servers=self._url,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            max_partition_fetch_bytes=self._most_bytes,
            session_timeout_ms=self._session_timeout_ms,
            heartbeat_interval_ms=max(1, self._session_timeout_ms // 3),
        )

    async def start(
        self,
        consumer: Any,
        producer: Any,
        topics: list[str],
        listener: ConsumerRebalanceListener | None = None,
    ) -> None:
        """Have `consumer` fetch."""
        if self._in_group:
            consumer.subscribe(topics, listener=listener)
            await consumer.start()
        else:
            await consumer.start()
            consumer.assign([p for topic in topics for p in await partitions_of(producer, topic)])

    @asynccontextmanager
    async def reader(self, group: str) -> AsyncIterator[Any]:
        """A consumer that may ask for and commit the group's offsets without being its member."""
        reader = self.consumer(group)
        try:
            await reader.start()
            yield reader
        finally:
            await reader.stop()


async def lag(reader: Any, producer: Any, topics: list[str]) -> list[int]:
    """How many records of each topic are there that the group of `reader` has not committed."""
    lags = []
    for topic in topics:
        partitions = await partitions_of(producer, topic)
        reader.assign(partitions)
        ends = await reader.end_offsets(partitions)
        # Retention deletes what nobody has read, too.
        oldest = await reader.beginning_offsets(partitions)
        behind = 0
        for partition in partitions:
            start = max(await reader.committed(partition) or 0, oldest[partition])
            behind += max(0, ends[partition] - start)
        lags.append(behind)
    return lags
