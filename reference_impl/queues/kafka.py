"""A queue on Kafka: a topic a class of priority, a consumer group, commits after processing.

What differs from the other brokers, because Kafka is a log:

- A lease is the ownership of a partition. A task that is not extended is handed out again here; one whose process died comes
  again when the group notices (`session_timeout_s`), and Kafka counts neither.
- A commit says "all before this": tasks that were acknowledged while an older one of their partition ran come again after a
  crash. Their idempotency keys make that harmless.
- Order within a class holds within a partition; `partitions` of each topic are used.
- Dead letters cannot be taken out of the middle: a replay goes from the oldest on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec

from reference_impl.live.wall_clock import wall_clock_s
from reference_impl.queues.book import DELIVERY_LIMIT, LEVELS
from reference_impl.queues.broker_queue import LOOKS_PER_LEASE, BrokerQueue
from reference_impl.queues.codec import MAX_TASK_BYTES
from reference_impl.queues.errors import QueueError
from reference_impl.queues.inbox import Delivery
from reference_impl.queues.kafka_clients import KafkaClients, lag
from reference_impl.queues.kafka_errors import KAFKA_ERRORS, translated
from reference_impl.queues.kafka_letters import LetterReader, letter_headers, letter_in
from reference_impl.queues.kafka_offsets import Offsets, Place
from reference_impl.queues.kafka_receiver import KafkaReceiver
from reference_impl.queues.kafka_retries import RetryForwarder, retry_headers, retry_topic
from reference_impl.queues.kafka_topics import Topics
from reference_impl.queues.letters import as_new
from reference_impl.queues.port import DeadLetter, QueuedTask, QueueStatistics

__all__ = ["KafkaQueue"]

logger = logging.getLogger(__name__)

# How long a `dequeue` that shall not wait gives records that are on their way.
_ON_THE_WAY_S: Final = 0.3
_PAUSE_S: Final = 1.0


class KafkaQueue(BrokerQueue[Any, Place]):
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

    driver_errors = KAFKA_ERRORS

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
        super().__init__(
            connection_url,
            lease_s=lease_s,
            levels=levels,
            max_bytes=max_bytes,
            timeout_s=timeout_s,
            start_limit_s=start_limit_s,
            clock=clock,
        )
        if partitions < 1:
            raise ValueError(f"partitions is {partitions}: expected at least 1")
        self._name = name
        self._delivery_limit = delivery_limit
        self._topics = Topics(name, levels, partitions)
        self._clients = KafkaClients(
            connection_url,
            in_group=in_group,
            max_bytes=max_bytes,
            timeout_s=timeout_s,
            session_timeout_s=session_timeout_s,
        )
        self._offsets = Offsets()
        self._consumer: Any = None
        self._retry_consumer: Any = None
        self._receiver: KafkaReceiver | None = None
        self._start: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []

    # -- the port -----------------------------------------------------------------------------------------------------

    async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
        receiver = await self._receiving()
        receiver.wanted = max_tasks
        until_s = asyncio.get_running_loop().time() + max(wait_s, _ON_THE_WAY_S)
        tasks = await self._await_tasks(max_tasks, until_s)
        receiver.took()
        return tasks

    async def ack_many(self, task_ids: Sequence[str]) -> list[bool]:
        self._check_open()
        results = []
        for task_id in task_ids:
            copies = self._inbox.settle(task_id)
            results.append(any(self._is_ours(copy) for copy in copies))
            for copy in copies:
                self._offsets.done(copy.receipt)
        self._counts.acknowledged += sum(results)
        async with self._translating():
            await self._offsets.commit(self._consumer)
        return results

    async def release(self, task_id: str) -> bool:
        """It is handed out here again, or by the next owner of its partition."""
        copies = self._ours(task_id)
        if copies:
            self._inbox.forget(copies)
            self._inbox.put_first(copies)
        return bool(copies)

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        async with self._exchange(limit), self._letters() as letters:
            return [letter_in(record) for record in await letters.read(limit)]

    async def replay_dead_letters(self, limit: int | None = None) -> int:
        """What is no task is put behind the others."""
        replayed = 0
        async with AsyncExitStack() as stack:
            async with self._exchange():
                letters = await stack.enter_async_context(self._letters())
                records = await letters.read(None)
            for record in records:
                if limit is not None and replayed >= limit:
                    break
                async with self._exchange() as producer:
                    replayed += await self._replay(producer, record)
                    await letters.pass_over(record)
        return replayed

    async def statistics(self) -> QueueStatistics:
        """`held` and `oldest_s` are None: the group's offsets tell neither."""
        async with self._exchange() as producer:
            async with self._clients.reader(self._name) as reader:
                lags = await lag(reader, producer, self._topics.classes)
            async with self._clients.reader(f"{self._name}.retry") as reader:
                delayed = sum(await lag(reader, producer, self._topics.retries))
            async with self._letters() as letters:
                start, end = await letters.bounds()
        held = [0] * self._levels
        for copies in self._inbox.all_held():
            held[copies[0].level] += len(copies)
        ready = tuple(max(0, behind - own) for behind, own in zip(lags, held, strict=True))
        return self._counts.statistics(ready, delayed, None, end - start, None)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        background = [*self._background, *([self._start] if self._start else [])]
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        try:
            if self._consumer is not None:
                async with self._translating():
                    await self._offsets.commit(self._consumer)
        except QueueError as error:
            logger.warning("the last acknowledgements were not committed: %s", error)
        for client in (self._consumer, self._retry_consumer, self._producer):
            if client is not None:
                await client.stop()
        self._inbox.clear()
        self._inbox.arrived.set()

    # -- sending and giving back --------------------------------------------------------------------------------------

    async def _publish(self, producer: Any, tasks: Sequence[tuple[QueuedTask, bytes]]) -> None:
        topics = self._topics
        confirms = [
            await producer.send(topics.topic_of(task), body, partition=topics.partition_of(task))
            for task, body in tasks
        ]
        await asyncio.gather(*confirms)

    async def _put_back(
        self, copies: list[Delivery[Place]], task: QueuedTask, delay_s: float
    ) -> bool:
        topic, headers = self._topics.topic_of(task), []
        if delay_s > 0:
            headers = retry_headers(self._clock() + delay_s, topic)
            topic = retry_topic(self._name, delay_s)
        partition = self._topics.partition_of(task)
        await self._replace_by(copies, topic, partition, self._encoded(task), headers)
        return True

    async def _put_among_dead(self, copies: list[Delivery[Place]], reason: str) -> bool:
        body, headers = self._encoded(copies[0].task), letter_headers(reason, self._clock())
        await self._replace_by(copies, self._topics.dead, 0, body, headers)
        return True

    async def _replace_by(
        self,
        copies: list[Delivery[Place]],
        topic: str,
        partition: int,
        body: bytes,
        headers: list[tuple[str, bytes]],
    ) -> None:
        """Send first, then pass over the old one: a crash between leaves two copies and never none."""
        with self._inbox.settling(copies):
            async with self._exchange() as producer:
                await producer.send_and_wait(topic, body, partition=partition, headers=headers)
                self._inbox.forget(copies)
                for copy in copies:
                    self._offsets.done(copy.receipt)
                await self._offsets.commit(self._consumer)

    async def _replay(self, producer: Any, record: Any) -> bool:
        """Whether it is a task."""
        task = letter_in(record).task
        if task is None:
            await producer.send_and_wait(
                self._topics.dead, record.value, partition=0, headers=list(record.headers)
            )
            return False
        await self._publish(
            producer, [(fresh := as_new(task, self._clock()), self._encoded(fresh))]
        )
        return True

    # -- the connection -----------------------------------------------------------------------------------------------

    @property
    def _producer(self) -> Any:
        """The session; None before it is needed."""
        return self._session

    async def _open(self) -> Any:
        producer = self._clients.producer()
        try:
            async with self._translating():
                await producer.start()
                await self._topics.check(producer, self._where)
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def _abandon(self, producer: Any) -> None:
        await producer.stop()

    def _is_ours(self, delivery: Delivery[Place]) -> bool:
        return self._offsets.is_ours(delivery.receipt)

    def _translated(self, error: BaseException) -> QueueError:
        return translated(error, self._where)

    @asynccontextmanager
    async def _letters(self) -> AsyncIterator[LetterReader]:
        async with self._clients.reader(f"{self._name}.replay") as reader:
            yield LetterReader(self._topics, reader)

    async def _receiving(self) -> KafkaReceiver:
        """Consumers that run. Their start goes on without a caller who gives up: half a start would leave one behind."""
        self._check_open()
        if self._receiver is None:
            if self._start is None or self._start.done():
                self._start = asyncio.create_task(
                    self._start_receiving(), name="background:kafka-start"
                )
            start = asyncio.shield(self._start)
            await asyncio.gather(start, return_exceptions=True)
            self._check_open()  # else it was cancelled because of that
            start.result()
        assert self._receiver is not None
        return self._receiver

    async def _start_receiving(self) -> None:
        self._retry_consumer = self._clients.consumer(f"{self._name}.retry")
        self._consumer = self._clients.consumer(self._name)
        async with self._exchange() as producer:
            receiver = KafkaReceiver(
                self._consumer,
                producer,
                self._topics,
                self._inbox,
                self._offsets,
                self._counts,
                self._clock,
            )
            try:
                await self._clients.start(self._retry_consumer, producer, self._topics.retries)
                await self._clients.start(self._consumer, producer, self._topics.classes, receiver)
            except BaseException:
                await self._retry_consumer.stop()
                await self._consumer.stop()
                raise
        forwarder = RetryForwarder(self._name, self._retry_consumer, producer, self._clock)
        runs = {
            "fetch": receiver.fetch,
            "unreadable": receiver.bury_unreadable,
            "leases": self._end_leases,
            "retries": forwarder.run,
        }
        self._background = [
            asyncio.create_task(_insist(run, name), name=f"background:kafka-{name}")
            for name, run in runs.items()
        ]
        self._receiver = receiver

    async def _end_leases(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self.lease_s / LOOKS_PER_LEASE))
            for copies in self._inbox.ended(loop.time()):
                if not self._is_ours(copies[0]):
                    self._inbox.forget(copies)
                    continue
                try:
                    await self._redeliver(copies)
                except QueueError as error:
                    logger.warning("a task whose leases were lost stays: %s", error)

    async def _redeliver(self, copies: list[Delivery[Place]]) -> None:
        first = copies[0]
        lost = first.task.redeliveries + 1
        self._counts.redelivered += 1
        if lost > self._delivery_limit:
            await self._bury(copies, f"lost {lost} times; its lease ended")
            return
        first.task = msgspec.structs.replace(first.task, redeliveries=lost)
        await self.release(first.task.task_id)


async def _insist(run: Callable[[], Awaitable[None]], what: str) -> None:
    """`run`, which ends only when it is cancelled: an end that nobody sees would hold up every task."""
    while True:
        try:
            await run()
        except Exception:
            logger.exception("Kafka (%s): an error that nobody foresaw, going on", what)
        await asyncio.sleep(_PAUSE_S)
