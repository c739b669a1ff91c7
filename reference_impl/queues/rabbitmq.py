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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from reference_impl.live.wall_clock import wall_clock_s
from reference_impl.queues.book import DELIVERY_LIMIT, LEVELS
from reference_impl.queues.broker_queue import LOOKS_PER_LEASE, BrokerQueue
from reference_impl.queues.codec import MAX_TASK_BYTES
from reference_impl.queues.errors import QueueError, QueueFull, QueueUnavailable
from reference_impl.queues.inbox import Delivery
from reference_impl.queues.letters import as_new
from reference_impl.queues.port import DeadLetter, QueuedTask, QueueStatistics
from reference_impl.queues.rabbitmq_census import RabbitMQCensus
from reference_impl.queues.rabbitmq_errors import AMQP_ERRORS, translated
from reference_impl.queues.rabbitmq_intake import RabbitMQIntake
from reference_impl.queues.rabbitmq_layout import Layout, delay_tier_ms
from reference_impl.queues.rabbitmq_letters import letter_to, oldest_letters, replay_oldest
from reference_impl.queues.rabbitmq_receiver import Receipt
from reference_impl.queues.rabbitmq_returns import RabbitMQReturns, acknowledge, requeue
from reference_impl.queues.rabbitmq_session import Publication, RabbitMQSession
from reference_impl.queues.starting import unavailable, without_password

__all__ = ["RabbitMQQueue"]

logger = logging.getLogger(__name__)

# How long a `dequeue` that shall not wait gives deliveries that are on their way.
_ON_THE_WAY_S: Final = 0.05
_LONGEST_LOOK_S: Final = 1.0
_MOST_LOOKED_AT: Final = 10_000


class RabbitMQQueue(BrokerQueue[RabbitMQSession, Receipt]):
    """A queue on the broker at `connection_url` (`amqp://user:password@host:port/vhost`, `amqps://`).

    Args:
        name: of the queue; those on the broker begin with it.
        lease_s: how long a task is held without being extended.
        levels: classes of priority, as all its users have them; each is a queue.
        delivery_limit: redeliveries of a task, beyond which it is dead.
        capacity: tasks that may wait in a class; None: no bound.
        max_bytes: of a task.
        timeout_s: for one exchange with a broker that was there before.
        start_limit_s: how long to wait for a broker that is not there at first.
        heartbeat_s: a peer that was silent for some three times as long is given up.
        clock: of `enqueued_s` and `deadline_s`.
    """

    driver_errors = AMQP_ERRORS

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
        super().__init__(
            without_password(connection_url),
            lease_s=lease_s,
            levels=levels,
            max_bytes=max_bytes,
            timeout_s=timeout_s,
            start_limit_s=start_limit_s,
            clock=clock,
        )
        self._url = connection_url
        self._heartbeat_s = heartbeat_s
        self._layout = Layout(name, levels, delivery_limit, capacity)
        self._census = RabbitMQCensus(self._layout)
        self._returns = RabbitMQReturns(self._publication, delivery_limit)
        self._intake = RabbitMQIntake(self._inbox, self._counts, clock, levels)
        # Whether tasks were asked for since the last look.
        self._asked = False
        self._fetching: asyncio.Task[None] | None = None
        # Why nothing comes, for those who wait.
        self._trouble: QueueError | None = None
        self._keeper: asyncio.Task[None] | None = None

    # -- the port -----------------------------------------------------------------------------------------------------

    async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_s
        self._asked = True
        self._trouble = None
        self._intake.asked += max_tasks
        try:
            await self._connected()
            if not self._intake.suffices():
                fetched = asyncio.shield(self._fetch(max_tasks))
                await asyncio.gather(fetched, return_exceptions=True)
            return await self._await_tasks(max_tasks, max(until_s, loop.time() + _ON_THE_WAY_S))
        finally:
            self._intake.asked -= max_tasks

    async def ack_many(self, task_ids: Sequence[str]) -> list[bool]:
        self._check_open()
        results = []
        now_s = asyncio.get_running_loop().time()
        for task_id in task_ids:
            copies = self._inbox.settle(task_id)
            if copies:
                self._intake.note_held(now_s - (copies[0].lease_ends_s - self.lease_s))
            await acknowledge(copies)
            results.append(bool(copies) and copies[0].receipt.session.is_open)
        self._counts.acknowledged += sum(results)
        return results

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest of the first ten thousand.

        Looking takes these from the queue for a moment: other connections wait with their own look until it has ended, and
        their `statistics` count fewer meanwhile.
        """
        async with self._exchange(_MOST_LOOKED_AT) as session:
            return await oldest_letters(session, _MOST_LOOKED_AT, limit)

    async def replay_dead_letters(self, limit: int | None = None) -> int:
        """Ten thousand are looked at together, and the oldest of them replayed first."""
        replayed = 0
        while True:
            left = None if limit is None else limit - replayed
            async with self._exchange(_MOST_LOOKED_AT) as session:
                looked_at, now_replayed = await replay_oldest(
                    session, _MOST_LOOKED_AT, left, self._publication_as_new
                )
            replayed += now_replayed
            if looked_at < _MOST_LOOKED_AT or not now_replayed:
                return replayed

    async def statistics(self) -> QueueStatistics:
        """`held` and `oldest_s` are None: without its management plugin RabbitMQ tells neither."""
        async with self._exchange() as session:
            census = await self._census.take(session, asyncio.get_running_loop().time())
        return self._counts.statistics(census.ready, census.delayed, None, census.dead, None)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        background = [task for task in (self._fetching, self._keeper) if task is not None]
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        session = self._session
        if session is not None and session.is_open:
            try:
                async with self._translating():
                    await self._hand_back_held(session)
                    await self._hand_back_unwanted(session)
            except QueueError as error:
                logger.warning("what was held is delivered again by the broker: %s", error)
        if session is not None:
            await session.close()
        self._inbox.clear()
        self._inbox.arrived.set()

    # -- sending and giving back --------------------------------------------------------------------------------------

    async def _publish(
        self, session: RabbitMQSession, tasks: Sequence[tuple[QueuedTask, bytes]]
    ) -> None:
        publications = [Publication(body, self._queue_of(task)) for task, body in tasks]
        taken = await session.publish_all(publications)
        if not all(taken):
            full = publications[taken.index(False)].queue
            raise QueueFull(
                f"{full} is full: {sum(taken)} of {len(taken)} tasks were accepted; try again later"
            )

    async def _put_back(
        self, copies: list[Delivery[Receipt]], task: QueuedTask, delay_s: float
    ) -> bool:
        """Publish first, then acknowledge: a crash between leaves two copies and never none.

        What is released goes this way too: a message that is requeued would count as delivered, up to the limit. Nothing is
        refused for want of room: it waits among the delayed, or where it was.
        """
        async with self._settling(copies) as session:
            if self._inbox.held(task.task_id) is not copies or not self._is_ours(copies[0]):
                return False
            tier_ms = delay_tier_ms(delay_s)
            try:
                exchange = await session.delay_exchange(tier_ms) if delay_s > 0 else ""
                await session.publish(self._publication(task, exchange))
            except QueueFull:
                if task is copies[0].task:
                    self._inbox.forget(copies)
                    await requeue(session, copies)
                    return True
                await session.publish(
                    self._publication(task, await session.delay_exchange(tier_ms))
                )
            await self._end(copies)
        return True

    async def _put_among_dead(self, copies: list[Delivery[Receipt]], reason: str) -> bool:
        task = copies[0].task
        body, was_held = self._encoded(task), self._inbox.held(task.task_id) is copies
        async with self._settling(copies) as session:
            is_held = self._inbox.held(task.task_id) is copies
            if is_held is not was_held or not self._is_ours(copies[0]):
                return False
            await session.publish(letter_to(self._layout.dead, body, reason, self._clock()))
            await self._end(copies)
        return True

    @asynccontextmanager
    async def _settling(self, copies: list[Delivery[Receipt]]) -> AsyncIterator[RabbitMQSession]:
        with self._inbox.settling(copies):
            async with self._exchange() as session:
                yield session

    async def _end(self, copies: list[Delivery[Receipt]]) -> None:
        self._inbox.forget(copies)
        await acknowledge(copies)

    async def _hand_back_held(self, session: RabbitMQSession) -> None:
        held = [copies for copies in self._inbox.all_held() if self._is_ours(copies[0])]
        for copies in held:
            self._inbox.forget(copies)
        await self._returns.hand_back_held(session, held)

    async def _hand_back_unwanted(self, session: RabbitMQSession) -> None:
        """What arrived and nobody here asks for; others may be idle. Where that fails the session ends, and gives it back."""
        try:
            await self._intake.stop(session)
            await self._returns.hand_back_unwanted(session, self._inbox.withdraw_all())
        except BaseException:
            session.ended.set()
            raise

    def _publication(self, task: QueuedTask, exchange: str = "") -> Publication:
        return Publication(self._encoded(task), self._queue_of(task), exchange)

    def _publication_as_new(self, task: QueuedTask) -> Publication:
        return self._publication(as_new(task, self._clock()))

    def _queue_of(self, task: QueuedTask) -> str:
        return self._layout.class_name(self._level_of(task))

    # -- receiving ----------------------------------------------------------------------------------------------------

    def _before_waiting(self, max_tasks: int, _remaining_s: float) -> None:
        if self._trouble is not None:
            raise self._trouble
        if not self._intake.suffices():
            self._fetch(max_tasks)

    def _fetch(self, max_tasks: int) -> asyncio.Task[None]:
        """The fetch that runs, or another.

        It goes on without a caller who gives up: cut off, it would leave a message with nobody, or a class without consumer.
        """
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(
                self._fetch_to_its_end(max_tasks), name="background:rabbitmq-fetch"
            )
        return self._fetching

    async def _fetch_to_its_end(self, max_tasks: int) -> None:
        try:
            async with self._exchange(max_tasks) as session:
                try:
                    await self._intake.fetch(session, max_tasks)
                except BaseException:
                    session.ended.set()
                    raise
        except QueueError as error:
            self._tell(error)
        except Exception as error:
            logger.exception("RabbitMQ: an error that nobody foresaw")
            self._tell(unavailable(error, self._where))
        finally:
            self._inbox.arrived.set()  # those who wait look again

    def _tell(self, error: QueueError) -> None:
        """Those who wait are told why nothing comes."""
        self._trouble = error
        self._inbox.arrived.set()

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _open(self) -> RabbitMQSession:
        """A new session in place of the last; what came through that one belongs to the broker again."""
        if self._session is not None:
            await self._session.close()
        self._inbox.clear()
        session = RabbitMQSession(self._layout)
        await session.open(self._url, self._heartbeat_s, self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._intake.resume(session)
        except AMQP_ERRORS as error:
            await session.close()
            raise self._translated(error) from error
        except BaseException:
            await session.close()  # else it would hold tasks that nobody hands out
            raise
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="background:rabbitmq-keeper")
        return session

    async def _abandon(self, session: RabbitMQSession) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        await session.close()

    def _is_open(self, session: RabbitMQSession) -> bool:
        return session.is_open

    def _is_ours(self, delivery: Delivery[Receipt]) -> bool:
        session = delivery.receipt.session
        return session is self._session and session.is_open

    async def _on_trouble(self, error: BaseException) -> None:
        if isinstance(error, TimeoutError) and self._session is not None:
            self._session.ended.set()  # a broker that hangs: better another connection

    def _translated(self, error: BaseException) -> QueueError:
        return translated(error, self._where)

    async def _keep(self) -> None:
        """Take back what is not extended, and bring the connection and its consumers back when they are gone."""
        while True:
            await asyncio.sleep(min(self.lease_s / LOOKS_PER_LEASE, _LONGEST_LOOK_S))
            try:
                await self._look_after(self._session)
            except QueueUnavailable as error:
                logger.warning("RabbitMQ is away, trying on: %s", error)
            except QueueError as error:
                logger.warning("RabbitMQ refuses, trying on: %s", error)
                self._tell(error)
            except Exception:
                logger.exception("RabbitMQ: an error that nobody foresaw, going on")

    async def _look_after(self, session: RabbitMQSession | None) -> None:
        if session is None or not session.is_open:
            if self._intake.prefetch:
                # Outside of an exchange: it has limits of its own, and what is cut off half-way begins anew.
                await self._connected()
            elif session is not None:
                await session.close()  # so that the broker has what came through it
        elif not session.consumers_are_there():
            session.ended.set()
        else:
            async with self._translating():
                await self._end_leases(session)
                is_fetching = self._fetching is not None and not self._fetching.done()
                is_wanted = self._asked or self._intake.asked or is_fetching
                if not is_wanted and self._inbox.waiting():
                    await self._hand_back_unwanted(session)
        self._asked = False

    async def _end_leases(self, session: RabbitMQSession) -> None:
        for copies in self._inbox.ended(asyncio.get_running_loop().time()):
            self._inbox.forget(copies)
            await requeue(session, copies)
