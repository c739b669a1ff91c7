"""Where the contract of the queues is played: each broker, on the loops that it can run on."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from reference_impl.queues.kafka import KafkaQueue
from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import MessageQueue, QueueStatistics
from reference_impl.queues.rabbitmq import RabbitMQQueue
from reference_impl.queues.redis_streams import RedisStreamsQueue
from simulation import kernel
from simulation.models.broker import Broker, VirtualQueue
from simulation.scenario.distributions import Constant
from tests.contracts import smuggle
from tests.servers.kafka import shared_kafka_url
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import shared_valkey_url, unique_prefix

LIMIT_S = 60.0


@dataclass(frozen=True)
class Traits:
    """What a broker is like, where the port leaves it open.

    delay_factor: a retry comes after at most so many times its delay, plus slack_s. counts_redeliveries: the broker knows how
    often a lease was lost. prefetches: a connection holds more than it has handed out. one_consumer: a group has one member.
    """

    delay_factor: float = 1.0
    slack_s: float = 0.01
    short_lease_s: float = 0.2
    counts_redeliveries: bool = True
    prefetches: bool = False
    one_consumer: bool = False
    backlog: int = 10_000


class QueueWorld(ABC):
    """Connections to one queue that no other test uses."""

    traits = Traits()

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self._opened: list[MessageQueue] = []

    def play(self, body: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            try:
                await asyncio.wait_for(body(), LIMIT_S)
            finally:
                for queue in self._opened:
                    await queue.close()
                await self.clean_up()

        self.run(main())

    async def connect(self, lease_s: float = 30.0) -> MessageQueue:
        queue = await self._connect(lease_s)
        self._opened.append(queue)
        return queue

    async def settled(self, queue: MessageQueue, dead: int) -> QueueStatistics:
        """Statistics once the broker shows `dead` dead letters; some count a moment later."""
        while True:
            now = await queue.statistics()
            if now.dead == dead:
                return now
            await asyncio.sleep(0.02)

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        asyncio.run(main)

    def clock(self) -> float:
        """The clock of deadlines."""
        return asyncio.get_running_loop().time()

    async def clean_up(self) -> None:
        """Remove the queue from its broker; in memory there is nothing to remove."""
        return

    @abstractmethod
    async def _connect(self, lease_s: float) -> MessageQueue: ...

    @abstractmethod
    async def smuggle(self, data: bytes) -> None:
        """Put bytes among the tasks of class 0, as another program may; somebody has connected before."""

    @abstractmethod
    async def crash(self, queue: MessageQueue) -> None:
        """End the connection as a killed process does: without a word."""


class Memory(QueueWorld):
    def __init__(self, levels: int) -> None:
        super().__init__(levels)
        self._first: MemoryQueue | None = None

    async def _connect(self, lease_s: float) -> MessageQueue:
        if self._first is None:
            self._first = MemoryQueue(levels=self.levels, lease_s=lease_s)
            return self._first
        return self._first.connect()

    async def smuggle(self, data: bytes) -> None:
        assert self._first is not None
        smuggle.into_book(self._first._book, data)

    async def crash(self, queue: MessageQueue) -> None:
        """A connection in memory dies only with its process; that nobody renews the lease is the nearest to it."""


class MemoryInVirtualTime(Memory):
    def run(self, main: Coroutine[Any, Any, None]) -> None:
        kernel.run(main)


class Virtual(QueueWorld):
    """Two milliseconds to the broker and back; it takes nobody's death for silence."""

    def __init__(self, levels: int) -> None:
        super().__init__(levels)
        self._broker: Broker | None = None

    async def _connect(self, lease_s: float) -> MessageQueue:
        if self._broker is None:
            self._broker = Broker(levels=self.levels, lease_s=lease_s, one_way=Constant(value=1e-3))
        return VirtualQueue(self._broker, f"connection {len(self._opened)}")

    async def smuggle(self, data: bytes) -> None:
        assert self._broker is not None
        smuggle.into_book(self._broker.book, data)

    async def crash(self, queue: MessageQueue) -> None:
        assert isinstance(queue, VirtualQueue)
        queue.crash()

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        kernel.run(main)


class VirtualOnARealLoop(Virtual):
    """At a twentieth of the backlog, because its latencies are waited for."""

    traits = Traits(backlog=500, slack_s=0.1)

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        asyncio.run(main)


class RedisStreams(QueueWorld):
    traits = Traits(slack_s=0.3, short_lease_s=0.4, prefetches=True)

    def __init__(self, levels: int) -> None:
        super().__init__(levels)
        self._url = shared_valkey_url()
        self._name = unique_prefix()

    async def _connect(self, lease_s: float) -> MessageQueue:
        return RedisStreamsQueue(self._url, name=self._name, lease_s=lease_s, levels=self.levels)

    async def smuggle(self, data: bytes) -> None:
        await smuggle.into_redis(self._url, self._name, data)

    async def crash(self, queue: MessageQueue) -> None:
        assert isinstance(queue, RedisStreamsQueue)
        queue._closed = True
        tasks = [*queue._background, *([queue._reading] if queue._reading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await queue._client.connection_pool.disconnect()

    def clock(self) -> float:
        return time.time()


class RabbitMQ(QueueWorld):
    """Small backlogs: a quorum queue takes some two thousand messages a second."""

    traits = Traits(delay_factor=2.0, slack_s=0.5, short_lease_s=0.4, prefetches=True)

    def __init__(self, levels: int) -> None:
        super().__init__(levels)
        self._url = shared_rabbitmq_url()
        self._name = unique_prefix()

    async def _connect(self, lease_s: float) -> MessageQueue:
        return RabbitMQQueue(self._url, name=self._name, lease_s=lease_s, levels=self.levels)

    async def smuggle(self, data: bytes) -> None:
        await smuggle.into_rabbitmq(self._url, self._name, data)

    async def crash(self, queue: MessageQueue) -> None:
        assert isinstance(queue, RabbitMQQueue)
        assert queue._session is not None
        assert queue._keeper is not None
        queue._closed = True
        queue._keeper.cancel()
        await asyncio.gather(queue._keeper, return_exceptions=True)
        await queue._session.close()

    def clock(self) -> float:
        return time.time()


class Kafka(QueueWorld):
    """One consumer that takes all partitions: joining a group of the mock takes three seconds each time."""

    traits = Traits(slack_s=0.5, short_lease_s=0.4, prefetches=True, one_consumer=True)
    in_group = False

    def __init__(self, levels: int) -> None:
        super().__init__(levels)
        self._url = shared_kafka_url()
        self._name = unique_prefix()

    async def _connect(self, lease_s: float) -> MessageQueue:
        return KafkaQueue(
            self._url,
            name=self._name,
            lease_s=lease_s,
            levels=self.levels,
            in_group=self.in_group,
        )

    async def smuggle(self, data: bytes) -> None:
        await smuggle.into_kafka(self._url, f"{self._name}.0", data)

    async def crash(self, queue: MessageQueue) -> None:
        assert isinstance(queue, KafkaQueue)
        queue._closed = True
        for task in queue._background:
            task.cancel()
        await asyncio.gather(*queue._background, return_exceptions=True)
        for client in (queue._consumer, queue._retry_consumer, queue._producer):
            await client.stop()

    def clock(self) -> float:
        return time.time()


class KafkaInAGroup(Kafka):
    in_group = True


WORLDS: list[Any] = [
    Memory,
    MemoryInVirtualTime,
    Virtual,
    VirtualOnARealLoop,
    RedisStreams,
    Kafka,
    pytest.param(KafkaInAGroup, marks=pytest.mark.soak),
    pytest.param(RabbitMQ, marks=pytest.mark.xdist_group("rabbitmq")),
]
