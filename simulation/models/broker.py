"""A virtual broker: the semantics of the queues behind a network, with confirms that take time, outages, cuts and crashes.

`Broker` is the server; `VirtualQueue` is one process's connection to it and implements `MessageQueue`, so `TaskProcessor`
runs over it unchanged. Both use the book that the queue in memory uses. Works on any event loop.

The defaults are a RabbitMQ 3.10 quorum queue on the loopback as aio-pika sees it (`tests.benchmarks.queues`):
a tenth of a millisecond of the broker for each message, and a confirm once its log has it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, TypeVar

from reference_impl.queues.book import DELIVERY_LIMIT, LEVELS, QueueBook
from reference_impl.queues.codec import MAX_TASK_BYTES
from reference_impl.queues.errors import QueueClosed, QueueUnavailable
from reference_impl.queues.memory import await_tasks
from reference_impl.queues.port import DeadLetter, Fate, MessageQueue, QueuedTask, QueueStatistics
from simulation.scenario.distributions import AnyDistribution, Constant
from simulation.scenario.random_streams import UNIFORMS_PER_KEY, uniforms

__all__ = ["Broker", "Outage", "VirtualQueue", "Way"]

R = TypeVar("R")

# How the broker is away: its process is gone (connections break and are refused), or it hangs (nothing is answered).
Outage = Literal["refusing", "hanging"]
# up: from a process to the broker. down: back.
Way = Literal["up", "down"]


class Broker:
    """The server's side.

    Args:
        seed: of the latencies.
        lease_s, levels, capacity, delivery_limit, max_bytes: of the queue; see `QueueBook`.
        one_way: latency of a message between a process and the broker, in seconds.
        service_s: the broker's work for one message; messages of all processes wait for each other.
        confirm_s: from the end of that work until what was published is safe. It is accepted then, not before.
        heartbeat_s: after this time without a sign of life a connection is given up.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        lease_s: float = 60.0,
        levels: int = LEVELS,
        capacity: int | None = None,
        delivery_limit: int = DELIVERY_LIMIT,
        max_bytes: int = MAX_TASK_BYTES,
        one_way: AnyDistribution | None = None,
        service_s: float = 1e-4,
        confirm_s: float = 2e-4,
        heartbeat_s: float = 30.0,
    ) -> None:
        if min(service_s, confirm_s) < 0 or heartbeat_s <= 0:
            raise ValueError(
                f"service_s ({service_s}) and confirm_s ({confirm_s}) must not be negative, heartbeat_s ({heartbeat_s}) "
                "must be positive"
            )
        self.seed = seed
        self.one_way = Constant(value=45e-6) if one_way is None else one_way
        self.confirm_s = confirm_s
        self.heartbeat_s = heartbeat_s
        self.book = QueueBook(
            levels=levels,
            lease_s=lease_s,
            capacity=capacity,
            delivery_limit=delivery_limit,
            max_bytes=max_bytes,
        )
        self.changed = asyncio.Event()
        self._service_s = service_s
        self._free_at_s = 0.0
        self._busy_s = 0.0
        self._messages = 0
        self._outage: Outage | None = None
        self._turned = asyncio.Event()  # whenever the outage begins, becomes another, or ends
        self._consumers: dict[int, None] = {}
        self._observer = self.book.new_consumer()

    @property
    def outage(self) -> Outage | None:
        return self._outage

    def fail(self, outage: Outage = "refusing") -> None:
        """Go away now. What is accepted stays: its log is on disk. A broker that is gone has lost its connections."""
        self._turn(outage)
        if outage == "refusing":
            for consumer in list(self._consumers):
                self.disconnect(consumer, lost=True)

    def recover(self) -> None:
        """Answer again; what was left hanging is answered now."""
        self._turn(None)
        self.changed.set()

    def _turn(self, outage: Outage | None) -> None:
        self._outage = outage
        self._turned.set()
        self._turned = asyncio.Event()

    def connect(self) -> int:
        """A consumer's number in the book."""
        consumer = self.book.new_consumer()
        self._consumers[consumer] = None
        return consumer

    def is_connected(self, consumer: int) -> bool:
        return consumer in self._consumers

    def disconnect(self, consumer: int, *, lost: bool) -> None:
        """The connection ends, orderly or not; what its consumer held is ready again."""
        if self._consumers.pop(consumer, self) is None:
            self.book.leave(consumer, asyncio.get_running_loop().time(), lost=lost)
            self.changed.set()

    async def serve(self, messages: int = 1, then_s: float = 0.0) -> None:
        """Work on `messages` after those that came before; raises QueueUnavailable while it refuses."""
        await self.answering()
        loop = asyncio.get_running_loop()
        work_s = self._service_s * messages
        self._free_at_s = max(loop.time(), self._free_at_s) + work_s
        self._busy_s += work_s
        self._messages += messages
        wait_s = self._free_at_s + then_s - loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
            await self.answering()

    async def answering(self) -> None:
        """Wait while it hangs; raises QueueUnavailable as soon as it refuses."""
        while self._outage is not None:
            if self._outage == "refusing":
                raise QueueUnavailable("connection refused by the virtual broker")
            await self._turned.wait()

    def statistics(self) -> QueueStatistics:
        """The queue as the broker sees it; the counts of connections are theirs."""
        return self.book.statistics(self._observer, asyncio.get_running_loop().time())

    def work(self) -> tuple[int, float]:
        """Messages since the start, and the seconds of the broker that they took."""
        return self._messages, self._busy_s


class VirtualQueue(MessageQueue):
    """The connection of process `name` to `broker`; latencies are drawn by (seed, name, message).

    A connection that broke is made again by the next call; what it held is then held no more.
    """

    def __init__(self, broker: Broker, name: str, *, timeout_s: float = 30.0) -> None:
        self.lease_s = broker.book.lease_s
        self._broker = broker
        self._purpose = f"queue {name}"
        self._timeout_s = timeout_s
        self._legs = 0
        self._consumer = broker.connect()
        self._closed = False
        self._mended: asyncio.Event | None = None
        self._cut_ways: tuple[Way, ...] = ()
        self._given_up: asyncio.TimerHandle | None = None

    # -- faults -------------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The process is killed: its connection breaks, and this object is of no more use."""
        self._closed = True
        self._broker.disconnect(self._consumer, lost=True)

    def cut(self, ways: tuple[Way, ...] = ("up", "down")) -> None:
        """No message passes these ways from now on; a broker that misses the heartbeats notices."""
        if self._mended is None:
            self._mended = asyncio.Event()
            self._cut_ways = ways
            if "up" in ways:
                self._given_up = asyncio.get_running_loop().call_later(
                    self._broker.heartbeat_s, self._give_up, self._consumer
                )

    def mend(self) -> None:
        """Messages pass again."""
        if self._mended is not None:
            self._mended.set()
            self._mended = None
            self._cut_ways = ()
        if self._given_up is not None:
            self._given_up.cancel()
            self._given_up = None
        if self._closed:
            self._give_up(self._consumer)  # the end of the connection arrives at last

    def reset(self) -> None:
        """The connection breaks, and both ends are told."""
        self._give_up(self._consumer)

    def _give_up(self, consumer: int) -> None:
        self._broker.disconnect(consumer, lost=True)

    def seen(self) -> QueueStatistics:
        """`statistics` at once, for whoever looks from outside of the world."""
        return self._broker.book.statistics(self._consumer, asyncio.get_running_loop().time())

    # -- the port -----------------------------------------------------------------------------------------------------

    async def enqueue_many(self, tasks: Sequence[QueuedTask]) -> list[str]:
        broker, book = self._broker, self._broker.book
        encoded = book.encode(tasks, self._now())

        async def publish() -> None:
            consumer = await self._connected()
            await self._cross(consumer, "up")
            await broker.serve(len(encoded), broker.confirm_s)
            self._check(consumer)
            book.add(consumer, encoded, self._now())
            broker.changed.set()
            await self._cross(consumer, "down")

        await self._within_time(publish())
        return [task.task_id for task in tasks]

    async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
        broker, book = self._broker, self._broker.book

        async def ask() -> int:
            consumer = await self._connected()
            await self._cross(consumer, "up")
            await broker.serve()
            return consumer

        def take() -> list[QueuedTask]:
            self._check(consumer)
            return [] if broker.outage is not None else book.take(consumer, max_tasks, self._now())

        def next_due_s() -> float:
            return math.inf if broker.outage is not None else book.next_due_s()

        consumer = await self._within_time(ask())
        taken = await await_tasks(next_due_s, broker.changed, take, wait_s)
        if taken:
            try:
                await self._within_time(self._cross(consumer, "down"))
            except asyncio.CancelledError:
                # What was on its way to somebody who is not waiting any more is handed back, as a client library does.
                for task in taken:
                    book.release(consumer, task.task_id, asyncio.get_running_loop().time())
                broker.changed.set()
                raise
        return taken

    async def ack_many(self, task_ids: Sequence[str]) -> list[bool]:
        return await self._ask(
            lambda book, consumer, now: [book.ack(consumer, name, now) for name in task_ids],
            len(task_ids),
        )

    async def nack(self, task_id: str, delay_s: float = 0.0, reason: str = "") -> Fate:
        return await self._ask(
            lambda book, consumer, now: book.nack(consumer, task_id, delay_s, reason, now)
        )

    async def release(self, task_id: str) -> bool:
        return await self._ask(lambda book, consumer, now: book.release(consumer, task_id, now))

    async def reject(self, task_id: str, reason: str) -> bool:
        return await self._ask(
            lambda book, consumer, now: book.reject(consumer, task_id, reason, now)
        )

    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        lease_s = self.checked_lease_s(lease_s)
        return await self._ask(
            lambda book, consumer, now: book.extend(consumer, task_id, lease_s, now)
        )

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        return await self._ask(lambda book, _consumer, _now: book.dead_letters(limit))

    async def replay_dead_letters(self, limit: int | None = None) -> int:
        return await self._ask(lambda book, _consumer, now: book.replay(limit, now))

    async def statistics(self) -> QueueStatistics:
        return await self._ask(lambda book, consumer, now: book.statistics(consumer, now))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._mended is not None:
            self._mended.set()  # who waits for a message is told
        if (
            "up" not in self._cut_ways
        ):  # else the goodbye does not arrive, and the heartbeats that are missing tell
            self._broker.disconnect(self._consumer, lost=False)

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _ask(self, command: Callable[[QueueBook, int, float], R], messages: int = 1) -> R:
        self._now()

        async def ask() -> R:
            consumer = await self._connected()
            await self._cross(consumer, "up")
            await self._broker.serve(messages)
            self._check(consumer)
            answer = command(self._broker.book, consumer, self._now())
            self._broker.changed.set()
            await self._cross(consumer, "down")
            return answer

        return await self._within_time(ask())

    async def _within_time(self, call: Coroutine[Any, Any, R]) -> R:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call
        except TimeoutError as error:
            raise QueueUnavailable(
                f"the virtual broker did not answer within {self._timeout_s:g} s"
            ) from error

    async def _connected(self) -> int:
        """The number of the present connection; makes another where the last one broke, which takes a word each way."""
        broker = self._broker
        if not broker.is_connected(self._consumer):
            await self._travel("up")
            await broker.answering()
            await self._travel("down")
            if not broker.is_connected(self._consumer):  # nor has another call made one meanwhile
                self._consumer = broker.connect()
        return self._consumer

    async def _cross(self, consumer: int, way: Way) -> None:
        """One message's way, over the connection on which it was sent."""
        await self._travel(way)
        self._check(consumer)

    async def _travel(self, way: Way) -> None:
        await asyncio.sleep(self._latency_s())
        while self._mended is not None and way in self._cut_ways and not self._closed:
            await self._mended.wait()
        self._now()

    def _check(self, consumer: int) -> None:
        self._now()
        if not self._broker.is_connected(consumer):
            raise QueueUnavailable("the connection to the virtual broker broke")

    def _latency_s(self) -> float:
        latency = self._broker.one_way
        if isinstance(latency, Constant):
            return latency.value
        number, leg = divmod(self._legs, UNIFORMS_PER_KEY)
        self._legs += 1
        return latency.quantile(uniforms(self._broker.seed, self._purpose, number)[leg])

    def _now(self) -> float:
        if self._closed:
            raise QueueClosed("the queue was closed; make another connection")
        return asyncio.get_running_loop().time()
