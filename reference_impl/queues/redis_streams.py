"""A queue on Redis Streams (Redis 6.2 or Valkey, and later), in batches.

One stream a class of priority, one consumer group; every connection is a consumer of its own. A read asks every class for as
many tasks as are wanted, so an urgent one is seen by the very next read, and what was read too much waits in the inbox.
Leases are the idle times of pending entries: what has been idle for `lease_s` is taken over (`XCLAIM`). Retries wait in a
sorted set, from which any connection moves them when they are due, by the server's clock.

Redis keeps what it accepted only as well as its append-only file does: with `appendonly yes` and `appendfsync always` a
killed server loses nothing, with `everysec` up to a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from reference_impl.live.wall_clock import wall_clock_s
from reference_impl.queues.book import DELIVERY_LIMIT, LEVELS
from reference_impl.queues.broker_queue import LOOKS_PER_LEASE, BrokerQueue
from reference_impl.queues.codec import MAX_TASK_BYTES
from reference_impl.queues.errors import QueueError, QueueUnavailable
from reference_impl.queues.inbox import Delivery
from reference_impl.queues.letters import as_new, read_letter
from reference_impl.queues.port import DeadLetter, QueuedTask, QueueStatistics
from reference_impl.queues.redis_client import (
    REDIS_ERRORS,
    close_client,
    is_without_group,
    redis_client,
    translated,
)
from reference_impl.queues.redis_receiver import RedisReceiver
from reference_impl.queues.redis_session import RedisSession
from reference_impl.queues.redis_troubles import Troubles
from reference_impl.queues.starting import without_password

__all__ = ["RedisStreamsQueue"]

logger = logging.getLogger(__name__)

_MAX_BLOCK_S: Final = 1.0
# How late a retry may be whose delay another connection wrote.
_LOOK_FOR_DUE_S: Final = 0.1
_LONGEST_LOOK_S: Final = 1.0
# Between reads that fail.
_PAUSE_S: Final = 0.05
_LETTERS_AT_ONCE: Final = 100


class RedisStreamsQueue(BrokerQueue[RedisSession, bytes]):
    """A queue on the server at `connection_url` (`redis://[user:password@]host:port/db`, `rediss://`, `unix://`).

    Args:
        name: of the queue; its keys begin with `twinload:{name}:`, in one slot of a cluster.
        lease_s, levels: as all its users have them; the first user writes them down, others are held to them.
        delivery_limit: redeliveries of a task, beyond which it is dead.
        max_bytes: of a task.
        timeout_s: for one command of a server that was there before.
        start_limit_s: how long to wait for a server that is not there at first.
        clock: of `enqueued_s` and `deadline_s`.
    """

    driver_errors = REDIS_ERRORS

    def __init__(
        self,
        connection_url: str,
        *,
        name: str = "tasks",
        lease_s: float = 60.0,
        levels: int = LEVELS,
        delivery_limit: int = DELIVERY_LIMIT,
        max_bytes: int = MAX_TASK_BYTES,
        timeout_s: float = 10.0,
        start_limit_s: float = 30.0,
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
        self._client = redis_client(connection_url, connections=4, connect_timeout_s=timeout_s)
        self._commands = RedisSession(self._client, name, levels)
        self._receiver = RedisReceiver(
            self._commands,
            self._inbox,
            self._counts,
            levels=levels,
            lease_s=lease_s,
            delivery_limit=delivery_limit,
            clock=clock,
        )
        self._background: list[asyncio.Task[None]] = []
        self._looks: set[asyncio.Task[Exception | None]] = set()
        self._reading: asyncio.Task[None] | None = None
        # Why nothing comes, for those who wait: what trying again does not help.
        self._hopeless: Exception | None = None
        self._troubles = Troubles(self._where)
        # For how many tasks the last `dequeue` asked, whether one did since the last look, and how many calls wait.
        self._wanted = 0
        self._asked = False
        self._waiting = 0

    # -- the port -----------------------------------------------------------------------------------------------------

    async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
        until_s = asyncio.get_running_loop().time() + wait_s
        self._wanted, self._asked = max_tasks, True
        self._hopeless = None
        await self._connected()
        self._waiting += 1
        try:
            await self._look(max_tasks)
            return await self._await_tasks(max_tasks, until_s)
        finally:
            self._waiting -= 1

    async def ack_many(self, task_ids: Sequence[str]) -> list[bool]:
        settled = [self._inbox.settle(task_id) for task_id in task_ids]
        try:
            async with self._exchange() as session:
                held = await session.acknowledge(copy for copies in settled for copy in copies)
        except BaseException:
            for copies in settled:
                if copies:
                    self._inbox.hold(copies)
            raise
        results = [any(copy.receipt in held for copy in copies) for copies in settled]
        self._counts.acknowledged += sum(results)
        return results

    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        passed_s = self.lease_s - self.checked_lease_s(lease_s)
        copies = self._inbox.held(task_id)
        asked = list(copies)  # another copy may come before the answer does
        async with self._exchange() as session:
            held = await session.renew(asked, passed_s)
        lost = [copy for copy in asked if copy.receipt not in held]
        if len(lost) < len(copies):
            copies[:] = [copy for copy in copies if copy not in lost]
            return True
        if copies:
            self._inbox.forget(copies)
        return False

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        async with self._exchange() as session:
            return [letter for _, letter in await session.dead_letters(limit)]

    async def replay_dead_letters(self, limit: int | None = None) -> int:
        """What dies while this runs is not among them: what fails at once would be replayed for ever."""
        async with self._exchange() as session:
            last = await session.last_dead_letter()
        after, replayed = b"", 0
        while last is not None and after != last and (limit is None or replayed < limit):
            async with self._exchange() as session:
                letters = await session.dead_letters(_LETTERS_AT_ONCE, after, last)
                for entry_id, letter in letters:
                    if limit is not None and replayed >= limit:
                        break
                    if letter.task is not None:
                        task = as_new(letter.task, self._clock())
                        level = self._level_of(task)
                        replayed += await session.replay(entry_id, level, self._encoded(task))
            after = letters[-1][0] if letters else last
        return replayed

    async def statistics(self) -> QueueStatistics:
        async with self._exchange() as session:
            ready, delayed, held, dead, heads = await session.state()
        now = self._clock()
        tasks = [read_letter(data, "", now).task for data in heads]
        since = [now if t is None or t.enqueued_s is None else t.enqueued_s for t in tasks]
        oldest_s = max(0.0, now - min(since)) if since else 0.0
        return self._counts.statistics(ready, delayed, held, dead, oldest_s)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._inbox.arrived.set()
        running = [*self._background, *self._looks, *([self._reading] if self._reading else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._session is not None:
            try:
                async with self._translating():
                    await self._session.hand_back_all()
            except QueueError as error:
                logger.warning("what was held comes again when its lease ends: %s", error)
        self._inbox.clear()
        await close_client(self._client)

    # -- sending and giving back --------------------------------------------------------------------------------------

    async def _publish(
        self, session: RedisSession, tasks: Sequence[tuple[QueuedTask, bytes]]
    ) -> None:
        await session.add((self._level_of(task), data) for task, data in tasks)

    async def _put_back(
        self, copies: list[Delivery[bytes]], task: QueuedTask, delay_s: float
    ) -> bool:
        data = self._encoded(task)
        return await self._replace_first(
            copies,
            lambda session, copy: session.put_back(copy.level, copy.receipt, data, delay_s),
        )

    async def _put_among_dead(self, copies: list[Delivery[bytes]], reason: str) -> bool:
        data, now = self._encoded(copies[0].task), self._clock()
        return await self._replace_first(
            copies, lambda session, copy: session.bury(copy.level, copy.receipt, data, reason, now)
        )

    async def _replace_first(
        self,
        copies: list[Delivery[bytes]],
        replace: Callable[[RedisSession, Delivery[bytes]], Any],
    ) -> bool:
        """Replace the first copy that is still held here, and drop the others."""
        replaced = False
        async with self._exchange() as session:
            for copy in copies:
                if replaced:
                    await session.drop(copy.level, copy.receipt)
                else:
                    replaced = await replace(session, copy)
        self._inbox.forget(copies)
        return replaced

    # -- receiving: apart from who asks, since what a cancelled read had taken would be held by nobody -----------------

    async def _look(self, max_tasks: int) -> None:
        """Fetch what is there."""
        look = asyncio.create_task(self._fetch(max_tasks), name="background:redis-look")
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)
        try:
            error = await asyncio.shield(look)
        except asyncio.CancelledError:
            if look.cancelled():  # by `close`
                self._check_open()
            raise
        if error is not None:
            raise error

    def _before_waiting(self, max_tasks: int, remaining_s: float) -> None:
        """A fetch that waits."""
        if self._hopeless is not None:
            raise self._hopeless
        if self._reading is None:
            block_s = min(remaining_s, _MAX_BLOCK_S, self._timeout_s / 2)
            self._reading = asyncio.create_task(
                self._fetch_when_there_is(max_tasks, block_s), name="background:redis-read"
            )

    async def _fetch_when_there_is(self, max_tasks: int, block_s: float) -> None:
        try:
            error = await self._fetch(max_tasks, block_s)
            if isinstance(error, QueueUnavailable):
                await asyncio.sleep(_PAUSE_S)
            else:
                self._hopeless = error
        finally:
            self._reading = None
            self._inbox.arrived.set()

    async def _fetch(self, max_tasks: int, block_s: float | None = None) -> Exception | None:
        """What went wrong is returned: nobody may be there any more to whom it could be raised."""
        loop = asyncio.get_running_loop()
        try:
            async with self._exchange():
                await self._receiver.read(max_tasks, block_s)
                looked_s = self._receiver.looked_s
                if block_s is None and loop.time() >= looked_s + self.lease_s / LOOKS_PER_LEASE:
                    await self._receiver.take_over(max_tasks)
        except Exception as error:  # noqa: BLE001 - told to those who wait, and logged
            self._troubles.failed("reads", error)
            return error
        self._troubles.well("reads")
        return None

    # -- leases and retries -------------------------------------------------------------------------------------------

    async def _keep_leases(self) -> None:
        """Renew what waits in the inbox, or give it to others where nobody asks for it; take over what was left idle."""
        loop = asyncio.get_running_loop()
        pause_s, renewed_s = self.lease_s / LOOKS_PER_LEASE, loop.time()
        while True:
            self._asked = False
            await asyncio.sleep(min(pause_s, _LONGEST_LOOK_S))
            with self._troubles.noting("leases"):
                async with self._exchange() as session:
                    if self._waiting and loop.time() >= self._receiver.looked_s + pause_s:
                        await self._receiver.take_over(self._wanted)
                    await self._hand_back_unwanted(session)
                    if loop.time() >= renewed_s + pause_s:
                        await session.renew(self._inbox.waiting())
                        renewed_s = loop.time()

    async def _hand_back_unwanted(self, session: RedisSession) -> None:
        """What nobody here asks for, of classes of which nothing else waits: those who are idle want it.

        Where more of its class waits, they take that, and what is here would lose its place to it.
        """
        for level in {delivery.level for delivery in self._inbox.waiting()}:
            if self._asked or self._waiting:
                return
            if not await session.has_unread(level):
                of_class = [d for d in self._inbox.waiting() if d.level == level]
                await session.hand_back([d for d in of_class if self._inbox.withdraw(d)])

    async def _move_retries(self) -> None:
        """Move retries that are due, by the server's clock."""
        while True:
            wait_s = _LOOK_FOR_DUE_S
            with self._troubles.noting("retries"):
                async with self._exchange() as session:
                    wait_s = min(wait_s, await session.move_due())
            await asyncio.sleep(wait_s)

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _open(self) -> RedisSession:
        async with self._translating():
            await self._commands.make(self._where, self.lease_s)
        self._background = [
            asyncio.create_task(self._keep_leases(), name="background:redis-leases"),
            asyncio.create_task(self._move_retries(), name="background:redis-retries"),
        ]
        return self._commands

    async def _abandon(self, _session: RedisSession) -> None:
        for task in self._background:
            task.cancel()
        await close_client(self._client)

    async def _on_trouble(self, error: BaseException) -> None:
        """A server that lost its data has lost the groups as well."""
        if is_without_group(error):
            try:
                await self._commands.make_groups()
            except REDIS_ERRORS as again:
                logger.debug("redis queue at %s has no groups yet: %s", self._where, again)

    def _translated(self, error: BaseException) -> QueueError:
        return translated(error, self._where)
