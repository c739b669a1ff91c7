"""A queue on Kafka: a topic a class of priority, a consumer group, commits after processing.

What differs from the other brokers, because Kafka is a log:

- A lease is the ownership of a partition. A task that is not extended is handed out again here; one whose process died comes
  again when the group notices (`session_timeout_s`), and Kafka counts neither.
- A commit says "all before this": tasks that were acknowledged while an older one of their partition ran come again after a
  crash. Their idempotency keys make that harmless.
- Order within a class holds within a partition; `partitions` of each topic are used.
- Dead letters cannot be taken out of the middle: a replay goes from the oldest on.

A consumer that has enough pauses its partitions and goes on polling, so it is never taken for dead while a handler runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    AuthenticationFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)

from reference_impl.live.wall_clock import wall_clock_s
from reference_impl.queues.book import DELIVERY_LIMIT, LEVELS
from reference_impl.queues.codec import MAX_TASK_BYTES, decode_task, encode_task
from reference_impl.queues.errors import (
    AccessRefused,
    InvalidTask,
    QueueClosed,
    QueueMismatch,
    QueueUnavailable,
)
from reference_impl.queues.inbox import Counts, Delivery, Inbox
from reference_impl.queues.kafka_offsets import Offsets, Place
from reference_impl.queues.kafka_retries import DUE, TARGET, WAITS_S, RetryForwarder, retry_topic
from reference_impl.queues.port import DeadLetter, Fate, MessageQueue, QueuedTask, QueueStatistics
from reference_impl.queues.starting import await_broker
from reference_impl.queues.weighted_round import level_of

__all__ = ["KafkaQueue"]

logger = logging.getLogger(__name__)

_REASON: Final = "twinload-reason"
_DIED: Final = "twinload-died"
_POLL_MS: Final = 50
_ON_THE_WAY_S: Final = 0.3
_LOOKS_PER_LEASE: Final = 4
_PAUSE_S: Final = 0.2

_REFUSALS: Final = (
    AuthenticationFailedError,
    SaslAuthenticationFailed,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
)

_replace = msgspec.structs.replace


class KafkaQueue(MessageQueue):
    """A queue on the cluster at `connection_url` ("host:port" or several, with commas).

    Args:
        name: of the queue, its topics and its group.
        lease_s, levels, delivery_limit, max_bytes: as for the other queues. The topics' `max.message.bytes` must allow a task.
        partitions: of each topic that are used; topics are made by the cluster or its operator.
        in_group: share the partitions with the other members of the group; else this connection takes them all, as the only
            consumer that a queue then may have.
        session_timeout_s: after which the group takes over from a silent member.
        timeout_s: for one exchange. start_limit_s: how long to wait for a cluster that is not there at first.
        clock: of `enqueued_s` and `deadline_s`.
    """

    def __init__(
        self,
        connection_url: str,
        *,
        name: str = "tasks",
        lease_s: float = 60.0,
        levels: int = LEVELS,
        delivery_limit: int = DELIVERY_LIMIT,
        max_bytes: int = MAX_TASK_BYTES,
        partitions: int = 1,
        in_group: bool = True,
        session_timeout_s: float = 10.0,
        timeout_s: float = 30.0,
        start_limit_s: float = 30.0,
        clock: Callable[[], float] = wall_clock_s,
    ) -> None:
        if lease_s <= 0 or partitions < 1:
            raise ValueError(
                f"lease_s ({lease_s}) must be positive and partitions ({partitions}) at least 1"
            )
        self.lease_s = lease_s
        self._url = connection_url
        self._name = name
        self._levels = levels
        self._delivery_limit = delivery_limit
        self._max_bytes = max_bytes
        self._partitions = partitions
        self._in_group = in_group
        self._session_timeout_ms = round(session_timeout_s * 1000)
        self._timeout_s = timeout_s
        self._start_limit_s = start_limit_s
        self._clock = clock
        self._topics = [f"{name}.{level}" for level in range(levels)]
        self._dead_topic = f"{name}.dead"
        self._producer: Any = None
        self._consumer: Any = None
        self._retry_consumer: Any = None
        self._starting = asyncio.Lock()
        self._committing = asyncio.Lock()
        self._offsets = Offsets()
        self._inbox: Inbox[Place] = Inbox(levels)
        self._lost_leases: dict[Place, int] = {}
        self._counts = Counts()
        self._arrived = asyncio.Event()
        self._wanted = 1
        self._start: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self._closed = False

    # -- producers ----------------------------------------------------------------------------------------------------

    async def enqueue_many(self, tasks: Sequence[QueuedTask]) -> list[str]:
        now = self._clock()
        encoded = []
        for task in tasks:
            stamped = task if task.enqueued_s is not None else _replace(task, enqueued_s=now)
            encoded.append((stamped, encode_task(stamped, self._max_bytes)))
        async with self._producing() as producer:
            confirms = [
                await producer.send(self._topic_of(task), body, partition=self._partition_of(task))
                for task, body in encoded
            ]
            await asyncio.gather(*confirms)
        self._counts.enqueued += len(tasks)
        return [task.task_id for task in tasks]

    # -- consumers ----------------------------------------------------------------------------------------------------

    async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
        loop = asyncio.get_running_loop()
        await self._consuming()
        until_s = loop.time() + max(wait_s, _ON_THE_WAY_S)
        self._wanted = max_tasks
        while True:
            self._arrived.clear()
            picked, late = self._inbox.pick(max_tasks, self._clock())
            for delivery in late:
                await self._bury([delivery], "its deadline passed while it waited")
            if picked:
                for delivery in picked:
                    delivery.lease_ends_s = loop.time() + self.lease_s
                self._counts.delivered += len(picked)
                return [delivery.task for delivery in picked]
            if loop.time() >= until_s:
                return []
            try:
                async with asyncio.timeout_at(None if until_s == math.inf else until_s):
                    await self._arrived.wait()
            except TimeoutError:
                continue
            if self._closed:
                raise QueueClosed("the queue was closed while it was waited for")

    async def ack_many(self, task_ids: Sequence[str]) -> list[bool]:
        self._check_open()
        results = []
        for task_id in task_ids:
            copies = self._inbox.settle(task_id)
            results.append(any(self._offsets.is_ours(copy.receipt) for copy in copies))
            for copy in copies:
                self._offsets.done(copy.receipt)
        self._counts.acknowledged += sum(results)
        async with self._translating():
            await self._commit()
        return results

    async def nack(self, task_id: str, delay_s: float = 0.0, reason: str = "") -> Fate:
        copies = self._ours(task_id)
        if not copies:
            return "lost"
        task = copies[0].task
        if task.retry_count >= task.max_retries:
            await self._bury(copies, f"failed {task.retry_count + 1} times: {reason}")
            return "dead"
        again = _replace(task, retry_count=task.retry_count + 1, redeliveries=0)
        headers = []
        topic = self._topic_of(task)
        if delay_s > 0:
            headers = [(DUE, b"%.6f" % (self._clock() + delay_s)), (TARGET, topic.encode())]
            topic = retry_topic(self._name, delay_s)
        await self._replace_by(copies, topic, self._encoded(again), headers)
        self._counts.retried += 1
        return "retry"

    async def release(self, task_id: str) -> bool:
        """It is handed out here again, or by the next owner of its partition."""
        copies = self._ours(task_id)
        self._inbox.settle(task_id)
        for copy in reversed(copies):
            self._inbox.put_first(copy)
        self._arrived.set()
        return bool(copies)

    async def reject(self, task_id: str, reason: str) -> bool:
        copies = self._ours(task_id)
        if copies:
            await self._bury(copies, reason)
        return bool(copies)

    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        self._check_open()
        ends_s = asyncio.get_running_loop().time() + self.checked_lease_s(lease_s)
        copies = self._ours(task_id)
        for copy in copies:
            copy.lease_ends_s = ends_s
        return bool(copies)

    # -- people -------------------------------------------------------------------------------------------------------

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        async with self._producing(), self._dead_reader() as reader:
            return [_dead_letter(record) for record in await self._read_dead(reader, limit)]

    async def replay_dead_letters(self, limit: int | None = None) -> int:
        replayed = 0
        async with self._producing() as producer, self._dead_reader() as reader:
            for record in await self._read_dead(reader, None):
                if replayed == limit:
                    break
                task = _dead_letter(record).task
                if task is None:  # stays, behind the others
                    await producer.send_and_wait(
                        self._dead_topic, record.value, partition=0, headers=list(record.headers)
                    )
                else:
                    fresh = _replace(task, retry_count=0, enqueued_s=self._clock(), deadline_s=None)
                    await producer.send_and_wait(
                        self._topic_of(fresh),
                        self._encoded(fresh),
                        partition=self._partition_of(fresh),
                    )
                    replayed += 1
                await reader.commit({self._dead_partition: record.offset + 1})
        return replayed

    async def statistics(self) -> QueueStatistics:
        """`held` and `oldest_s` are None: the group's offsets tell neither."""
        delays = [f"{self._name}.retry.{wait_s:g}s" for wait_s in WAITS_S]
        async with self._producing(), self._reader(self._name) as reader:
            lags = [await self._lag(reader, topic) for topic in self._topics]
            delayed = 0
            async with self._reader(f"{self._name}.retry") as retries:
                for topic in delays:
                    delayed += await self._lag(retries, topic)
            async with self._dead_reader() as dead_reader:
                start, end = await self._dead_range(dead_reader)
        held = [0] * self._levels
        for copies in self._inbox.all_held():
            held[copies[0].level] += len(copies)
        ready = tuple(max(0, lag - own) for lag, own in zip(lags, held, strict=True))
        return self._counts.statistics(ready, delayed, None, end - start, None)

    async def close(self) -> None:
        if self._closed:
            return
        if self._start is not None:
            await asyncio.gather(self._start, return_exceptions=True)
        self._closed = True
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        try:
            if self._consumer is not None:
                await self._commit()
        except KafkaError as error:
            logger.warning("the last acknowledgements were not committed: %s", error)
        for client in (self._consumer, self._retry_consumer, self._producer):
            if client is not None:
                await client.stop()
        self._inbox.clear()
        self._arrived.set()

    # -- inside: giving back ------------------------------------------------------------------------------------------

    def _ours(self, task_id: str) -> list[Delivery[Place]]:
        self._check_open()
        copies = self._inbox.held(task_id)
        return copies if copies and self._offsets.is_ours(copies[0].receipt) else []

    async def _bury(self, copies: list[Delivery[Place]], reason: str) -> None:
        body = self._encoded(_replace(copies[0].task, redeliveries=0))
        await self._replace_by(copies, self._dead_topic, body, self._death(reason))
        self._counts.dead_lettered += 1

    async def _replace_by(
        self,
        copies: list[Delivery[Place]],
        topic: str,
        body: bytes,
        headers: list[tuple[str, bytes]],
    ) -> None:
        """Send first, then pass over the old one: a crash between leaves two copies and never none."""
        task = copies[0].task
        partition = 0 if topic == self._dead_topic else self._partition_of(task)
        async with self._producing() as producer:
            await producer.send_and_wait(topic, body, partition=partition, headers=headers)
            if self._inbox.held(task.task_id) is copies:
                self._inbox.settle(task.task_id)
            for copy in copies:
                self._offsets.done(copy.receipt)
            await self._commit()

    def _death(self, reason: str) -> list[tuple[str, bytes]]:
        return [(_REASON, reason.encode()), (_DIED, b"%.6f" % self._clock())]

    async def _commit(self) -> None:
        """One at a time; whoever waited for the last finds nothing left to commit."""
        async with self._committing:
            positions = self._offsets.to_commit()
            if positions:
                await self._consumer.commit(positions)
                self._offsets.committed(positions)

    def _encoded(self, task: QueuedTask) -> bytes:
        return encode_task(task, self._max_bytes + 1024)

    def _topic_of(self, task: QueuedTask) -> str:
        return self._topics[level_of(task.priority, self._levels)]

    def _partition_of(self, task: QueuedTask) -> int:
        return zlib.crc32(task.task_id.encode()) % self._partitions

    # -- inside: receiving --------------------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        """Poll for ever; classes of which there is enough are paused."""
        while True:
            try:
                for partition in self._consumer.assignment():
                    level = self._topics.index(partition.topic)
                    enough = len(self._inbox.arrived[level]) >= self._wanted
                    if enough != (partition in self._consumer.paused()):
                        (self._consumer.pause if enough else self._consumer.resume)(partition)
                fetched = await self._consumer.getmany(
                    timeout_ms=_POLL_MS, max_records=max(self._wanted, 10)
                )
                for partition, records in fetched.items():
                    for record in records:
                        await self._receive(partition, record)
            except IllegalStateError:
                continue  # a partition was taken away between two calls
            except KafkaError as error:
                logger.warning("Kafka is away, trying on: %s", error)
                await asyncio.sleep(_PAUSE_S)

    async def _receive(self, partition: TopicPartition, record: Any) -> None:
        place = self._offsets.delivered(partition, record.offset)
        try:
            task = decode_task(record.value or b"")
        except InvalidTask as error:
            await self._producer.send_and_wait(
                self._dead_topic, record.value, partition=0, headers=self._death(str(error))
            )
            self._offsets.done(place)
            self._counts.dead_lettered += 1
            return
        self._inbox.put(Delivery(task, self._topics.index(partition.topic), place))
        self._arrived.set()

    async def _end_leases(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self.lease_s / _LOOKS_PER_LEASE))
            for copies in self._inbox.all_held():
                if loop.time() >= copies[0].lease_ends_s:
                    try:
                        await self._redeliver(copies)
                    except QueueUnavailable as error:
                        logger.warning("a task whose leases were lost stays: %s", error)

    async def _redeliver(self, copies: list[Delivery[Place]]) -> None:
        first = copies[0]
        lost = first.task.redeliveries + 1
        self._counts.redelivered += 1
        if lost > self._delivery_limit:
            await self._bury(copies, f"lost {lost} times; its lease ended")
            return
        first.task = _replace(first.task, redeliveries=lost)
        await self.release(first.task.task_id)

    # -- inside: the connection ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _producing(self) -> AsyncIterator[Any]:
        """The producer; inside, Kafka's errors become ours."""
        self._check_open()
        if self._producer is None:
            async with self._starting:
                if self._producer is None:
                    self._producer = await await_broker(
                        self._start_producer, self._url, self._start_limit_s
                    )
        async with self._translating():
            yield self._producer

    @asynccontextmanager
    async def _translating(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except (KafkaError, OSError, TimeoutError) as error:
            raise _translated(error, self._url) from error

    async def _start_producer(self) -> Any:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._url,
            enable_idempotence=True,
            max_request_size=self._max_bytes + 64 * 1024,
            request_timeout_ms=round(self._timeout_s * 1000),
        )
        try:
            async with self._translating():
                await producer.start()
                for topic in [*self._topics, self._dead_topic]:
                    known = await producer.partitions_for(topic)
                    if len(known) < self._partitions:
                        raise QueueMismatch(
                            f"topic {topic!r} has {len(known)} partitions, here {self._partitions} are used: add some, or use "
                            "fewer"
                        )
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def _consuming(self) -> None:
        """Consumers that run. Their start goes on without a caller who gives up: half a start would leave one behind."""
        self._check_open()
        if not self._background:
            if self._start is None or (self._start.done() and not self._background):
                self._start = asyncio.create_task(
                    self._start_consuming(), name="background:kafka-start"
                )
            await asyncio.shield(self._start)

    async def _start_consuming(self) -> None:
        async with self._producing():
            if self._background:
                return
        async with self._starting:
            if self._background:
                return
            async with self._translating():
                retries = [f"{self._name}.retry.{wait_s:g}s" for wait_s in WAITS_S]
                self._retry_consumer = await self._start_consumer(
                    retries, f"{self._name}.retry", None
                )
                self._consumer = await self._start_consumer(
                    self._topics, self._name, _Revocations(self._on_revoked)
                )
            forwarder = RetryForwarder(
                self._name, self._retry_consumer, self._producer, self._clock
            )
            self._background = [
                asyncio.create_task(self._fetch(), name="background:kafka-fetch"),
                asyncio.create_task(self._end_leases(), name="background:kafka-leases"),
                asyncio.create_task(forwarder.run(), name="background:kafka-retries"),
            ]

    async def _start_consumer(
        self, topics: list[str], group: str, listener: ConsumerRebalanceListener | None
    ) -> Any:
        consumer = self._new_consumer(group)
        try:
            if self._in_group:
                consumer.subscribe(topics, listener=listener)
                await consumer.start()
            else:
                await consumer.start()
                partitions = [
                    TopicPartition(topic, number)
                    for topic in topics
                    for number in sorted(await self._producer.partitions_for(topic))
                ]
                consumer.assign(partitions)
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    def _new_consumer(self, group: str) -> Any:
        return AIOKafkaConsumer(
            bootstrap_servers=self._url,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_POLL_MS,
            max_partition_fetch_bytes=self._max_bytes + 64 * 1024,
            session_timeout_ms=self._session_timeout_ms,
            heartbeat_interval_ms=max(1, self._session_timeout_ms // 3),
        )

    async def _on_revoked(self, partitions: set[TopicPartition]) -> None:
        """What came from these partitions belongs to their next owner; what was done is told first."""
        await self._commit()
        for partition in sorted(partitions):
            self._offsets.revoked(partition)
        for arrived in self._inbox.arrived:
            for delivery in [d for d in arrived if not self._offsets.is_ours(d.receipt)]:
                arrived.remove(delivery)

    # -- inside: looking ----------------------------------------------------------------------------------------------

    @property
    def _dead_partition(self) -> TopicPartition:
        return TopicPartition(self._dead_topic, 0)

    @asynccontextmanager
    async def _reader(self, group: str) -> AsyncIterator[Any]:
        """A consumer that may ask for and commit the group's offsets without being its member."""
        reader = self._new_consumer(group)
        try:
            await reader.start()
            yield reader
        finally:
            await reader.stop()

    @asynccontextmanager
    async def _dead_reader(self) -> AsyncIterator[Any]:
        """Its group's offset is how far the dead letters have been replayed."""
        async with self._reader(f"{self._name}.replay") as reader:
            reader.assign([self._dead_partition])
            yield reader

    async def _dead_range(self, reader: Any) -> tuple[int, int]:
        start = await reader.committed(self._dead_partition) or 0
        ends = await reader.end_offsets([self._dead_partition])
        return start, ends[self._dead_partition]

    async def _read_dead(self, reader: Any, limit: int | None) -> list[Any]:
        start, end = await self._dead_range(reader)
        if limit is not None:
            end = min(end, start + limit)
        reader.seek(self._dead_partition, start)
        records: list[Any] = []
        while not records or records[-1].offset < end - 1:
            if start >= end:
                break
            fetched = await reader.getmany(timeout_ms=_POLL_MS)
            records += fetched.get(self._dead_partition, [])
        return [record for record in records if record.offset < end]

    async def _lag(self, reader: Any, topic: str) -> int:
        known = await self._producer.partitions_for(topic)
        partitions = [TopicPartition(topic, number) for number in sorted(known)]
        reader.assign(partitions)
        ends = await reader.end_offsets(partitions)
        lag = 0
        for partition in partitions:
            lag += ends[partition] - (await reader.committed(partition) or 0)
        return lag

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed("the queue was closed; make another connection")


class _Revocations(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, on_revoked: Callable[[set[TopicPartition]], Any]) -> None:
        self._on_revoked = on_revoked

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        await self._on_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """They are fetched from where the group is."""


def _translated(error: BaseException, where: str) -> Exception:
    if isinstance(error, _REFUSALS):
        return AccessRefused(
            f"{where} refuses these credentials: {error}; correct them, or the ACLs"
        )
    text = str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        text = "no answer in time"
    return QueueUnavailable(f"{where}: {text}")


def _dead_letter(record: Any) -> DeadLetter:
    headers = dict(record.headers)
    reason = headers.get(_REASON, b"").decode()
    died_s = float(headers.get(_DIED, b"0"))
    try:
        return DeadLetter(decode_task(record.value or b""), reason, died_s)
    except InvalidTask:
        return DeadLetter(None, reason, died_s, record.value or b"")
