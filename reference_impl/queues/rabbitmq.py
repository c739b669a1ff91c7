"""A queue on RabbitMQ (3.10 and later): quorum queues, confirms in parallel, deliveries pushed.

The broker's part of the lease is the connection: when it breaks, everything unacknowledged is delivered again. That a consumer
lives and yet no longer works is noticed here: what is not extended in time goes back. A confirm of a quorum queue means that a
majority of nodes has the message on disk; what is unconfirmed counts as unsent.

The broker's own `consumer_timeout` (30 minutes by default) must exceed the longest time for which a task is held; the nodes of
`twinload services` and compose.yaml allow a day.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import msgspec
from aiormq.abc import DeliveredMessage
from pamqp.common import FieldTable

from reference_impl.live.wall_clock import wall_clock_s
from reference_impl.queues.book import DELIVERY_LIMIT, LEVELS
from reference_impl.queues.codec import MAX_TASK_BYTES, decode_task, encode_task
from reference_impl.queues.errors import InvalidTask, QueueClosed, QueueUnavailable
from reference_impl.queues.inbox import Counts, Delivery, Inbox
from reference_impl.queues.port import DeadLetter, Fate, MessageQueue, QueuedTask, QueueStatistics
from reference_impl.queues.rabbitmq_session import (
    AMQP_ERRORS,
    Publication,
    RabbitMQSession,
    delay_tier_ms,
    delay_tiers_ms,
    translated,
)
from reference_impl.queues.starting import await_broker, without_password
from reference_impl.queues.weighted_round import level_of

__all__ = ["RabbitMQQueue"]

logger = logging.getLogger(__name__)

_REASON: Final = "x-twinload-reason"
_DIED: Final = "x-twinload-died"
# How long a `dequeue` that shall not wait gives deliveries that are on their way.
_ON_THE_WAY_S: Final = 0.05
_LOOKS_PER_LEASE: Final = 4
_LONGEST_LOOK_S: Final = 1.0

_replace = msgspec.structs.replace


class _Receipt(NamedTuple):
    """A delivery is known by its tag to the session that it came through, and to no other."""

    session: RabbitMQSession
    tag: int


class RabbitMQQueue(MessageQueue):
    """A queue on the broker at `connection_url` (`amqp://user:password@host:port/vhost`, `amqps://`).

    Args:
        name: of the queue; those on the broker begin with it.
        lease_s: how long a task is held without being extended.
        levels: classes of priority; each is a queue.
        delivery_limit: redeliveries of a task, beyond which it is dead.
        capacity: tasks that may wait in a class; None: no bound.
        max_bytes: of a task.
        timeout_s: for one exchange with a broker that was there before.
        start_limit_s: how long to wait for a broker that is not there at first.
        heartbeat_s: a peer that was silent for some three times as long is given up.
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
        capacity: int | None = None,
        max_bytes: int = MAX_TASK_BYTES,
        timeout_s: float = 10.0,
        start_limit_s: float = 30.0,
        heartbeat_s: float = 10.0,
        clock: Callable[[], float] = wall_clock_s,
    ) -> None:
        if lease_s <= 0:
            raise ValueError(f"lease_s is {lease_s}: expected more than 0 seconds")
        self.lease_s = lease_s
        self._url = connection_url
        self._where = without_password(connection_url)
        self._name = name
        self._levels = levels
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._start_limit_s = start_limit_s
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._arguments: FieldTable = {
            "x-queue-type": "quorum",
            "x-delivery-limit": delivery_limit,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": f"{name}.dead",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        if capacity is not None:
            self._arguments["x-max-length"] = capacity
        self._session: RabbitMQSession | None = None
        self._opening = asyncio.Lock()
        self._was_there = False
        self._prefetch = 0
        # Whether tasks were asked for since the last look, and how many calls wait for some.
        self._asked = False
        self._waiting = 0
        self._inbox: Inbox[_Receipt] = Inbox(levels)
        self._counts = Counts()
        self._arrived = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    # -- producers ----------------------------------------------------------------------------------------------------

    async def enqueue_many(self, tasks: Sequence[QueuedTask]) -> list[str]:
        now = self._clock()
        publications = []
        for task in tasks:
            stamped = task if task.enqueued_s is not None else _replace(task, enqueued_s=now)
            body = encode_task(stamped, self._max_bytes)
            publications.append(Publication(body, self._queue_of(task)))
        async with self._session_for(len(publications)) as session:
            await session.publish_all(publications)
        self._counts.enqueued += len(tasks)
        return [task.task_id for task in tasks]

    # -- consumers ----------------------------------------------------------------------------------------------------

    async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
        until_s = asyncio.get_running_loop().time() + max(wait_s, _ON_THE_WAY_S)
        self._asked = True
        self._waiting += 1
        try:
            await self._consume(self._inbox.held_count + max_tasks)
            return await self._await_tasks(max_tasks, until_s)
        finally:
            self._waiting -= 1

    async def _await_tasks(self, max_tasks: int, until_s: float) -> list[QueuedTask]:
        loop = asyncio.get_running_loop()
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
            for copy in copies:
                await self._drop(copy)
            results.append(bool(copies) and copies[0].receipt.session.is_open)
        self._counts.acknowledged += sum(results)
        return results

    async def nack(self, task_id: str, delay_s: float = 0.0, reason: str = "") -> Fate:
        copies = self._inbox.held(task_id)
        if not copies:
            return "lost"
        task = copies[0].task
        if task.retry_count >= task.max_retries:
            why = f"failed {task.retry_count + 1} times: {reason}"
            return "dead" if await self._bury(copies, why) else "lost"
        again = _replace(task, retry_count=task.retry_count + 1)
        if not await self._publish_again(copies, again, delay_s):
            return "lost"
        self._counts.retried += 1
        return "retry"

    async def release(self, task_id: str) -> bool:
        """A copy is published in its place: a requeued message would count as a delivery."""
        copies = self._inbox.held(task_id)
        return bool(copies) and await self._publish_again(copies, copies[0].task, 0.0)

    async def reject(self, task_id: str, reason: str) -> bool:
        copies = self._inbox.held(task_id)
        return bool(copies) and await self._bury(copies, reason)

    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        self._check_open()
        ends_s = asyncio.get_running_loop().time() + self.checked_lease_s(lease_s)
        copies = self._inbox.held(task_id)
        for copy in copies:
            copy.lease_ends_s = ends_s
        return bool(copies)

    # -- people -------------------------------------------------------------------------------------------------------

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """At most ten thousand are looked at, which takes them all from the queue for a moment."""
        async with self._session_for(10_000) as session, session.looking_at(session.dead) as look:
            letters = [_dead_letter(message) for _, message in await look.messages()]
        return sorted(letters, key=_died_s)[:limit]

    async def replay_dead_letters(self, limit: int | None = None) -> int:
        replayed = 0
        async with self._session_for(10_000) as session, session.looking_at(session.dead) as look:
            found = [(tag, _dead_letter(message)) for tag, message in await look.messages()]
            for tag, letter in sorted(found, key=lambda pair: pair[1].died_s):
                if letter.task is None or replayed == limit:
                    continue
                fresh = _replace(
                    letter.task, retry_count=0, enqueued_s=self._clock(), deadline_s=None
                )
                await session.publish(Publication(self._encoded(fresh), self._queue_of(fresh)))
                await look.remove(tag)
                replayed += 1
        return replayed

    async def statistics(self) -> QueueStatistics:
        """`held` and `oldest_s` are None: without its management plugin RabbitMQ tells neither."""
        async with self._session_for(1) as session:
            delays = [f"{self._name}.delay.{tier_ms}" for tier_ms in delay_tiers_ms()]
            counts = await session.message_counts([*session.queues, session.dead, *delays])
        ready, (dead, *delayed) = counts[: self._levels], counts[self._levels :]
        return self._counts.statistics(tuple(ready), sum(delayed), None, dead, None)

    async def close(self) -> None:
        if self._closed:
            return
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        session = self._session
        if session is not None and session.is_open:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._hand_back_all(session)
            except (QueueUnavailable, *AMQP_ERRORS) as error:
                logger.warning("what was held is delivered again by the broker: %s", error)
            await session.close()
        self._closed = True
        self._inbox.clear()
        self._arrived.set()

    # -- inside: giving back ------------------------------------------------------------------------------------------

    async def _publish_again(
        self, copies: list[Delivery[_Receipt]], task: QueuedTask, delay_s: float
    ) -> bool:
        """Publish first, then acknowledge: a crash between leaves two copies and never none."""
        body = self._encoded(_replace(task, redeliveries=0))
        async with self._session_for(1) as session:
            if not self._still_holds(copies, session):
                return False
            exchange = ""
            if delay_s > 0:
                exchange = await session.delay_exchange(delay_tier_ms(delay_s))
            await session.publish(Publication(body, self._queue_of(task), exchange))
            await self._end(copies)
        return True

    async def _bury(self, copies: list[Delivery[_Receipt]], reason: str) -> bool:
        body = self._encoded(_replace(copies[0].task, redeliveries=0))
        async with self._session_for(1) as session:
            if copies[0].receipt.session is not session:
                return False
            await self._publish_dead(session, body, reason)
            await self._end(copies)
        self._counts.dead_lettered += 1
        return True

    async def _publish_dead(self, session: RabbitMQSession, body: bytes, reason: str) -> None:
        # Headers are long strings of AMQP; a frame holds them all.
        headers = {_REASON: reason[:10_000], _DIED: f"{self._clock():.6f}"}
        await session.publish(Publication(body, session.dead, headers=headers))

    async def _end(self, copies: list[Delivery[_Receipt]]) -> None:
        if self._inbox.held(copies[0].task.task_id) is copies:
            self._inbox.settle(copies[0].task.task_id)
        for copy in copies:
            await self._drop(copy)

    async def _drop(self, delivery: Delivery[_Receipt]) -> None:
        """Acknowledge; a session that is gone has given the message to others."""
        session, tag = delivery.receipt
        if session.is_open:
            try:
                await session.ack(tag)
            except AMQP_ERRORS:
                session.ended.set()

    def _still_holds(self, copies: list[Delivery[_Receipt]], session: RabbitMQSession) -> bool:
        return (
            copies[0].receipt.session is session
            and self._inbox.held(copies[0].task.task_id) is copies
        )

    async def _hand_back_all(self, session: RabbitMQSession) -> None:
        held = [copies for copies in self._inbox.all_held() if copies[0].receipt.session is session]
        for copies in held:
            self._inbox.settle(copies[0].task.task_id)
        await self._republish(session, held)
        await self._hand_back_unwanted(session)

    async def _hand_back_unwanted(self, session: RabbitMQSession) -> None:
        """What arrived and nobody here asks for; others may be idle."""
        self._prefetch = 0
        await session.stop_consuming()
        waiting = [[delivery] for delivery in self._inbox.waiting()]
        for arrived in self._inbox.arrived:
            arrived.clear()
        await self._republish(session, waiting)

    async def _republish(
        self, session: RabbitMQSession, held: list[list[Delivery[_Receipt]]]
    ) -> None:
        """Behind what waits, in their order: a message that is requeued would count as delivered, up to the limit."""
        await session.publish_all(
            [
                Publication(
                    self._encoded(_replace(copies[0].task, redeliveries=0)),
                    self._queue_of(copies[0].task),
                )
                for copies in held
            ]
        )
        for copies in held:
            for copy in copies:
                await session.ack(copy.receipt.tag)

    def _encoded(self, task: QueuedTask) -> bytes:
        """It fitted once, and its counts take few bytes."""
        return encode_task(task, self._max_bytes + 1024)

    def _queue_of(self, task: QueuedTask) -> str:
        return f"{self._name}.{level_of(task.priority, self._levels)}"

    # -- inside: receiving --------------------------------------------------------------------------------------------

    async def _consume(self, wanted: int) -> None:
        """Have tasks delivered, as many of a class as are held and wanted here: more would wait while others are idle."""
        session = await self._connected()
        if wanted <= self._prefetch:
            return
        self._prefetch = max(wanted, 2 * self._prefetch)
        async with self._translating():
            await session.consume(self._prefetch, self._receiver(session))

    def _receiver(self, session: RabbitMQSession) -> Callable[[int, DeliveredMessage], Any]:
        async def receive(level: int, message: DeliveredMessage) -> None:
            tag = int(getattr(message.delivery, "delivery_tag", 0))
            try:
                task = decode_task(message.body)
            except InvalidTask as error:
                await self._publish_dead(session, message.body, str(error))
                await session.ack(tag)
                self._counts.dead_lettered += 1
                return
            if redeliveries := _redeliveries(message):
                task = _replace(task, redeliveries=redeliveries)
                self._counts.redelivered += 1
            self._inbox.put(Delivery(task, level, _Receipt(session, tag)))
            self._arrived.set()

        return receive

    # -- inside: the connection ---------------------------------------------------------------------------------------

    async def _connected(self) -> RabbitMQSession:
        self._check_open()
        if self._session is not None and self._session.is_open:
            return self._session
        async with self._opening:
            if self._session is None or not self._session.is_open:
                limit_s = self._timeout_s if self._was_there else self._start_limit_s
                self._session = await await_broker(self._open, self._where, limit_s)
                self._was_there = True
                if self._keeper is None:
                    self._keeper = asyncio.create_task(
                        self._keep(), name="background:rabbitmq-keeper"
                    )
        return self._session

    async def _open(self) -> RabbitMQSession:
        """A new session in place of the last; what came through that one belongs to the broker again."""
        if self._session is not None:
            await self._session.close()
        self._inbox.clear()
        session = RabbitMQSession(self._name, self._levels, self._arguments)
        await session.open(self._url, self._heartbeat_s, self._timeout_s)
        if self._prefetch:
            try:
                await session.consume(self._prefetch, self._receiver(session))
            except AMQP_ERRORS as error:
                await session.close()
                raise translated(error, self._where) from error
        return session

    @asynccontextmanager
    async def _session_for(self, messages: int) -> AsyncIterator[RabbitMQSession]:
        """The session, for an exchange of so many messages; inside, AMQP's errors become ours."""
        session = await self._connected()
        async with self._translating(messages):
            yield session

    @asynccontextmanager
    async def _translating(self, messages: int = 1) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s * (1 + messages / 1000)):
                yield
        except AMQP_ERRORS as error:
            if isinstance(error, TimeoutError) and self._session is not None:
                self._session.ended.set()  # a broker that hangs: better another connection
            raise translated(error, self._where) from error

    async def _keep(self) -> None:
        """Take back what is not extended, and bring the connection and its consumers back when they are gone."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(self.lease_s / _LOOKS_PER_LEASE, _LONGEST_LOOK_S))
            session = self._session
            try:
                if self._prefetch and (session is None or not session.is_open):
                    await self._connected()
                elif session is not None and not session.consumers_are_there():
                    session.ended.set()
                elif session is not None:
                    await self._end_leases(session, loop.time())
                    if not (self._asked or self._waiting) and any(self._inbox.arrived):
                        await self._hand_back_unwanted(session)
                self._asked = False
            except QueueUnavailable as error:
                logger.warning("RabbitMQ is away, trying on: %s", error)
            except AMQP_ERRORS:
                continue  # the session has noted its end

    async def _end_leases(self, session: RabbitMQSession, now: float) -> None:
        for copies in self._inbox.all_held():
            if now >= copies[0].lease_ends_s:
                self._inbox.settle(copies[0].task.task_id)
                for copy in copies:
                    if copy.receipt.session is session:
                        await session.requeue(copy.receipt.tag)

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed("the queue was closed; make another connection")


def _died_s(letter: DeadLetter) -> float:
    return letter.died_s


def _headers(message: DeliveredMessage) -> dict[str, Any]:
    return dict(message.header.properties.headers or {})


def _redeliveries(message: DeliveredMessage) -> int:
    count = _headers(message).get("x-delivery-count", 0)
    return count if isinstance(count, int) else 0


def _dead_letter(message: DeliveredMessage) -> DeadLetter:
    headers = _headers(message)
    reason = headers.get(_REASON)
    if reason is None:  # the broker buried it
        count = headers.get("x-delivery-count", "too many")
        reason = f"lost {count} times; the connection of its consumer broke, or its lease ended"
    died_s = float(headers.get(_DIED, 0.0))
    for death in headers.get("x-death", ()):
        if not died_s and "time" in death:
            died_s = death["time"].timestamp()
    try:
        return DeadLetter(decode_task(message.body), str(reason), died_s)
    except InvalidTask:
        return DeadLetter(None, str(reason), died_s, message.body)
