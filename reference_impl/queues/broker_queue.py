"""What the queues on real brokers have in common: a connection that is opened when it is first needed, and tasks that are
received into an `Inbox` and waited for there.

An adapter says how to open its session, how to send, and what the broker calls it to give a task back; see the abstract methods
at the end. When tasks arrive it puts them into `_inbox`. Each is one class in one module, some 300 lines with its documented
arguments, so that what it does is read in one place.
"""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, Generic, TypeVar

import msgspec

from reference_impl.queues.codec import COUNTS_BYTES, encode_task
from reference_impl.queues.counts import Counts
from reference_impl.queues.errors import QueueClosed, QueueError
from reference_impl.queues.inbox import Delivery, Inbox
from reference_impl.queues.letters import LATE, kept_reason, reason_of_failure
from reference_impl.queues.port import Fate, MessageQueue, QueuedTask, bounded_delay_s
from reference_impl.queues.starting import await_broker
from reference_impl.queues.weighted_round import level_of

__all__ = ["LOOKS_PER_LEASE", "BrokerQueue"]

# How often leases are looked after.
LOOKS_PER_LEASE = 4

S = TypeVar("S")  # the adapter's session with its broker
R = TypeVar("R")  # what the broker knows a delivery by

_replace = msgspec.structs.replace


class BrokerQueue(MessageQueue, Generic[S, R]):
    """A `MessageQueue` whose broker is at `where`, which may stand in messages.

    Args:
        lease_s, levels, max_bytes, timeout_s, start_limit_s, clock: as the adapters document them.
    """

    # What the driver and the sockets below it raise; TimeoutError is among them.
    driver_errors: ClassVar[tuple[type[BaseException], ...]]

    def __init__(
        self,
        where: str,
        *,
        lease_s: float,
        levels: int,
        max_bytes: int,
        timeout_s: float,
        start_limit_s: float,
        clock: Callable[[], float],
    ) -> None:
        if lease_s <= 0:
            raise ValueError(f"lease_s is {lease_s}: expected more than 0 seconds")
        self.lease_s = lease_s
        self._where = where
        self._levels = levels
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._start_limit_s = start_limit_s
        self._clock = clock
        self._session: S | None = None
        self._opening = asyncio.Lock()
        self._was_there = False
        self._inbox: Inbox[R] = Inbox(levels)
        self._counts = Counts()
        self._closed = False

    # -- the port -----------------------------------------------------------------------------------------------------

    async def enqueue_many(self, tasks: Sequence[QueuedTask]) -> list[str]:
        now = self._clock()
        stamped = [t if t.enqueued_s is not None else _replace(t, enqueued_s=now) for t in tasks]
        encoded = [(task, encode_task(task, self._max_bytes)) for task in stamped]
        async with self._exchange(len(encoded)) as session:
            await self._publish(session, encoded)
        self._counts.enqueued += len(encoded)
        return [task.task_id for task in tasks]

    async def nack(self, task_id: str, delay_s: float = 0.0, reason: str = "") -> Fate:
        copies = self._ours(task_id)
        if not copies:
            return "lost"
        task = copies[0].task
        if task.retry_count >= task.max_retries:
            return "dead" if await self._bury(copies, reason_of_failure(task, reason)) else "lost"
        again = _replace(task, retry_count=task.retry_count + 1, redeliveries=0)
        if not await self._put_back(copies, again, bounded_delay_s(delay_s)):
            return "lost"
        self._counts.retried += 1
        return "retry"

    async def release(self, task_id: str) -> bool:
        copies = self._ours(task_id)
        return bool(copies) and await self._put_back(copies, copies[0].task, 0.0)

    async def reject(self, task_id: str, reason: str) -> bool:
        copies = self._ours(task_id)
        return bool(copies) and await self._bury(copies, reason)

    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        """Where leases are kept here; a broker that keeps them has its own way."""
        ends_s = asyncio.get_running_loop().time() + self.checked_lease_s(lease_s)
        copies = self._ours(task_id)
        for copy in copies:
            copy.lease_ends_s = ends_s
        return bool(copies)

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def _await_tasks(self, max_tasks: int, until_s: float) -> list[QueuedTask]:
        """Up to `max_tasks` of the inbox, as soon as there is one, until the loop's clock says `until_s`."""
        loop = asyncio.get_running_loop()
        while True:
            self._inbox.arrived.clear()
            picked, late = self._inbox.pick(max_tasks, self._clock())
            await self._bury_late(late, picked)
            if picked:
                for delivery in picked:
                    delivery.lease_ends_s = loop.time() + self.lease_s
                self._counts.delivered += len(picked)
                return [delivery.task for delivery in picked]
            remaining_s = until_s - loop.time()
            if remaining_s <= 0:
                return []
            self._before_waiting(max_tasks, remaining_s)
            try:
                async with asyncio.timeout_at(None if until_s == math.inf else until_s):
                    await self._inbox.arrived.wait()
            except TimeoutError:
                continue
            if self._closed:
                raise QueueClosed("the queue was closed while it was waited for")

    async def _bury_late(self, late: list[Delivery[R]], picked: list[Delivery[R]]) -> None:
        """Where that fails, everything is back in the inbox: nobody is told what was picked beside it."""
        for number, delivery in enumerate(late):
            try:
                await self._bury([delivery], LATE)
            except BaseException:
                copies = [c for p in picked for c in self._inbox.settle(p.task.task_id)]
                unsettled = [*copies, *late[number:]]
                self._inbox.put_first([d for d in unsettled if self._is_ours(d)])
                raise

    async def _bury(self, copies: list[Delivery[R]], reason: str) -> bool:
        """To the dead letters; False if they were lost meanwhile."""
        buried = await self._put_among_dead(copies, kept_reason(reason))
        self._counts.dead_lettered += buried
        return buried

    def _ours(self, task_id: str) -> list[Delivery[R]]:
        """The copies of a task, if it is held here and the broker agrees as far as it is known."""
        self._check_open()
        copies = self._inbox.held(task_id)
        return copies if copies and self._is_ours(copies[0]) else []

    # -- sending ------------------------------------------------------------------------------------------------------

    def _level_of(self, task: QueuedTask) -> int:
        return level_of(task.priority, self._levels)

    def _encoded(self, task: QueuedTask) -> bytes:
        """As it goes back to the broker, which counts redeliveries itself. It fitted once."""
        return encode_task(_replace(task, redeliveries=0), self._max_bytes + COUNTS_BYTES)

    # -- the connection -----------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed("the queue was closed; make another connection")

    async def _connected(self) -> S:
        """The session; it is opened here, and again where the last one ended. Waits for a broker that is not there yet."""
        self._check_open()
        if self._session is None or not self._is_open(self._session):
            async with self._opening:
                if self._session is None or not self._is_open(self._session):
                    limit_s = self._timeout_s if self._was_there else self._start_limit_s
                    self._session = await await_broker(
                        self._open_unless_closed, self._where, limit_s
                    )
                    self._was_there = True
        return self._session

    async def _open_unless_closed(self) -> S:
        """`close` ends what it finds: a session that opens beside it, or after it, would outlive the queue."""
        self._check_open()
        session = await self._open()
        if self._closed:
            await self._abandon(session)
            self._check_open()
        return session

    @asynccontextmanager
    async def _exchange(self, messages: int = 1) -> AsyncIterator[S]:
        """The session, for an exchange of so many messages; inside, the driver's errors become ours."""
        session = await self._connected()
        async with self._translating(messages):
            yield session

    @asynccontextmanager
    async def _translating(self, messages: int = 1) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s * (1 + messages / 1000)):
                yield
        except self.driver_errors as error:
            await self._on_trouble(error)
            raise self._translated(error) from error

    # -- what an adapter says -----------------------------------------------------------------------------------------

    @abstractmethod
    async def _open(self) -> S:
        """A session whose queue exists on the broker. Raises a QueueError: QueueUnavailable is waited out."""

    @abstractmethod
    async def _abandon(self, session: S) -> None:
        """End what `_open` gave, and all that it started: the queue was closed meanwhile."""

    def _is_open(self, _session: S) -> bool:
        """Whether the session can still be used."""
        return True

    @abstractmethod
    def _translated(self, error: BaseException) -> QueueError:
        """What one of `driver_errors` means to a user of the port."""

    async def _on_trouble(self, _error: BaseException) -> None:
        """What is done about one of `driver_errors`, before it is raised in its translation."""
        return

    @abstractmethod
    async def _publish(self, session: S, tasks: Sequence[tuple[QueuedTask, bytes]]) -> None:
        """Send all; returns once the broker has them."""

    def _before_waiting(self, _max_tasks: int, _remaining_s: float) -> None:
        """The inbox is empty and is about to be waited for."""
        return

    def _is_ours(self, _delivery: Delivery[R]) -> bool:
        """Whether what was delivered has not gone to somebody else, as far as it is known here."""
        return True

    @abstractmethod
    async def _put_back(self, copies: list[Delivery[R]], task: QueuedTask, delay_s: float) -> bool:
        """Have `task` wait, for at least `delay_s`, in place of the copies; False if they were lost meanwhile."""

    @abstractmethod
    async def _put_among_dead(self, copies: list[Delivery[R]], reason: str) -> bool:
        """The same for the dead letters. The copies may be none that are handed out."""
