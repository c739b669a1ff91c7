"""A queue on Redis Streams (Redis 6.2 or Valkey, and later), in batches.

One stream a class of priority, one consumer group; every connection is a consumer of its own. A read asks every class for as
many tasks as are wanted, so an urgent one is seen by the very next read, and what was read too much waits in the inbox.
Leases are the idle times of pending entries: `XAUTOCLAIM` takes over what has been idle for `lease_s`. Retries wait in a
sorted set, from which any connection moves them when they are due, by the server's clock.

Redis keeps what it accepted only as well as its append-only file does: with `appendonly yes` and `appendfsync always` a
killed server loses nothing, with `everysec` up to a second.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)

from reference_impl.live.wall_clock import wall_clock_s
from reference_impl.queues import redis_scripts
from reference_impl.queues.book import DELIVERY_LIMIT, LEVELS
from reference_impl.queues.codec import MAX_TASK_BYTES, decode_task, encode_task
from reference_impl.queues.errors import (
    AccessRefused,
    InvalidTask,
    QueueClosed,
    QueueFull,
    QueueMismatch,
    QueueUnavailable,
)
from reference_impl.queues.inbox import Counts, Delivery, Inbox
from reference_impl.queues.port import DeadLetter, Fate, MessageQueue, QueuedTask, QueueStatistics
from reference_impl.queues.starting import await_broker, without_password
from reference_impl.queues.weighted_round import level_of

__all__ = ["RedisStreamsQueue"]

logger = logging.getLogger(__name__)

_GROUP: Final = "workers"
_MAX_BATCH: Final = 500
_MAX_BLOCK_S: Final = 1.0
# How late a retry may be whose delay another connection wrote.
_LOOK_FOR_DUE_S: Final = 0.1
_LOOKS_PER_LEASE: Final = 4
# Between reads that fail.
_PAUSE_S: Final = 0.05

_replace = msgspec.structs.replace


class RedisStreamsQueue(MessageQueue):
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
        if lease_s <= 0:
            raise ValueError(f"lease_s is {lease_s}: expected more than 0 seconds")
        self.lease_s = lease_s
        self._where = without_password(connection_url)
        self._levels = levels
        self._delivery_limit = delivery_limit
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._start_limit_s = start_limit_s
        self._clock = clock
        space = f"twinload:{{{name}}}"
        self._settings_key = f"{space}:settings"
        self._streams = [f"{space}:ready:{level}" for level in range(levels)]
        self._delayed_key = f"{space}:delayed"
        self._dead_key = f"{space}:dead"
        self._consumer = f"consumer-{secrets.token_hex(8)}"
        pool: Any = BlockingConnectionPool.from_url(
            connection_url,
            max_connections=4,
            protocol=2,  # RESP 3 gives streams in another shape
            timeout=None,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
        )
        # redis-py annotates each reply with every type that any version and mode may give.
        client: Any = Redis(connection_pool=pool)
        self._client = client
        self._enqueue = client.register_script(redis_scripts.ENQUEUE)
        self._ack = client.register_script(redis_scripts.ACK)
        self._give_back = client.register_script(redis_scripts.GIVE_BACK)
        self._extend = client.register_script(redis_scripts.EXTEND)
        self._move_due = client.register_script(redis_scripts.MOVE_DUE)
        self._replay = client.register_script(redis_scripts.REPLAY)
        self._inbox: Inbox[bytes] = Inbox(levels)
        self._counts = Counts()
        self._arrived = asyncio.Event()
        self._starting = asyncio.Lock()
        self._started = False
        self._closed = False
        self._background: list[asyncio.Task[None]] = []
        self._reading: asyncio.Task[None] | None = None
        # For how many tasks the last `dequeue` asked, how many calls wait, and when what was left idle was looked for.
        self._wanted = 0
        self._waiting = 0
        self._looked_s = -math.inf

    # -- producers ----------------------------------------------------------------------------------------------------

    async def enqueue_many(self, tasks: Sequence[QueuedTask]) -> list[str]:
        now = self._clock()
        arguments: list[int | bytes] = []
        for task in tasks:
            stamped = task if task.enqueued_s is not None else _replace(task, enqueued_s=now)
            arguments.append(level_of(task.priority, self._levels))
            arguments.append(encode_task(stamped, self._max_bytes))
        async with self._asking():
            for start in range(0, len(arguments), 2 * _MAX_BATCH):
                await self._enqueue(self._streams, arguments[start : start + 2 * _MAX_BATCH])
        self._counts.enqueued += len(tasks)
        return [task.task_id for task in tasks]

    # -- consumers ----------------------------------------------------------------------------------------------------

    async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_s
        self._wanted = max_tasks
        async with self._asking():
            await self._read(max_tasks)
            if loop.time() >= self._looked_s + self.lease_s / _LOOKS_PER_LEASE:
                await self._take_over()
        self._waiting += 1
        try:
            return await self._await_tasks(max_tasks, until_s)
        finally:
            self._waiting -= 1

    async def _await_tasks(self, max_tasks: int, until_s: float) -> list[QueuedTask]:
        loop = asyncio.get_running_loop()
        while True:
            self._arrived.clear()
            picked = await self._pick(max_tasks)
            remaining_s = until_s - loop.time()
            if picked or remaining_s <= 0:
                return picked
            if self._reading is None:
                self._reading = asyncio.create_task(
                    self._read_when_there_is(max_tasks, min(remaining_s, _MAX_BLOCK_S)),
                    name="background:redis-read",
                )
            try:
                async with asyncio.timeout(None if remaining_s == math.inf else remaining_s):
                    await self._arrived.wait()
            except TimeoutError:
                continue
            if self._closed:
                raise QueueClosed("the queue was closed while it was waited for")

    async def ack_many(self, task_ids: Sequence[str]) -> list[bool]:
        settled = [self._inbox.settle(task_id) for task_id in task_ids]
        try:
            async with self._asking():
                held: dict[bytes, bool] = {}
                for level, stream in enumerate(self._streams):
                    ids = [d.receipt for copies in settled for d in copies if d.level == level]
                    if ids:
                        answers = await self._ack([stream], [_GROUP, self._consumer, *ids])
                        held.update(zip(ids, map(bool, answers), strict=True))
        except BaseException:
            for copies in settled:
                if copies:
                    self._inbox.hold(copies)
            raise
        results = [any(held[copy.receipt] for copy in copies) for copies in settled]
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
        again = self._encoded(_replace(task, retry_count=task.retry_count + 1))
        if delay_s > 0:
            details = ["delayed", again, copies[0].level, math.ceil(delay_s * 1000)]
        else:
            details = ["ready", again]
        if not await self._end(copies, details):
            return "lost"
        self._counts.retried += 1
        return "retry"

    async def release(self, task_id: str) -> bool:
        copies = self._inbox.held(task_id)
        return bool(copies) and await self._end(copies, ["ready", self._encoded(copies[0].task)])

    async def reject(self, task_id: str, reason: str) -> bool:
        copies = self._inbox.held(task_id)
        return bool(copies) and await self._bury(copies, reason)

    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        passed_s = self.lease_s - self.checked_lease_s(lease_s)
        copies = self._inbox.held(task_id)
        async with self._asking():
            still_held = await self._renew(copies, passed_s)
        if copies and not still_held:
            self._inbox.settle(task_id)
        return still_held

    # -- people -------------------------------------------------------------------------------------------------------

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        async with self._asking():
            entries = await self._client.xrange(self._dead_key, count=limit)
        return [_dead_letter(fields) for _, fields in entries]

    async def replay_dead_letters(self, limit: int | None = None) -> int:
        replayed = 0
        after = "-"
        while limit is None or replayed < limit:
            async with self._asking():
                entries = await self._client.xrange(self._dead_key, min=after, count=100)
                for entry_id, fields in entries:
                    task = _dead_letter(fields).task
                    if task is None or (limit is not None and replayed >= limit):
                        continue
                    data = self._encoded(
                        _replace(task, retry_count=0, enqueued_s=self._clock(), deadline_s=None)
                    )
                    stream = self._streams[level_of(task.priority, self._levels)]
                    replayed += await self._replay([self._dead_key, stream], [entry_id, data])
            if len(entries) < 100:
                break
            after = f"({entries[-1][0].decode()}"
        return replayed

    async def statistics(self) -> QueueStatistics:
        async with self._asking():
            pipeline = self._client.pipeline(transaction=True)
            for stream in self._streams:
                pipeline.xlen(stream)
                pipeline.xpending(stream, _GROUP)
                pipeline.xinfo_groups(stream)
            pipeline.zcard(self._delayed_key)
            pipeline.xlen(self._dead_key)
            *classes, delayed, dead = await pipeline.execute()
            ready, held = [], 0
            heads: list[float] = []
            for level, stream in enumerate(self._streams):
                length, pending, groups = classes[3 * level : 3 * level + 3]
                ready.append(max(0, length - pending["pending"]))
                held += pending["pending"]
                last = groups[0]["last-delivered-id"].decode()
                for _, fields in await self._client.xrange(stream, min=f"({last}", count=1):
                    heads.append(_enqueued_s(fields, self._clock()))
        oldest_s = max(0.0, self._clock() - min(heads)) if heads else 0.0
        return self._counts.statistics(tuple(ready), delayed, held, dead, oldest_s)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._arrived.set()
        running = [*self._background, *([self._reading] if self._reading else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        try:
            async with asyncio.timeout(self._timeout_s):
                for copies in [*self._inbox.all_held(), *([d] for d in self._inbox.waiting())]:
                    for copy in copies:
                        await self._give_back_one(copy, ["ready", self._encoded(copy.task)])
        except (RedisError, OSError, TimeoutError) as error:
            logger.warning("what was held comes again when its lease ends: %s", error)
        self._inbox.clear()
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    # -- inside: reading ----------------------------------------------------------------------------------------------

    async def _pick(self, max_tasks: int) -> list[QueuedTask]:
        picked, late = self._inbox.pick(max_tasks, self._clock())
        for delivery in late:
            async with self._asking():
                await self._bury_one(delivery, "its deadline passed while it waited")
        self._counts.delivered += len(picked)
        return [delivery.task for delivery in picked]

    async def _read(self, max_tasks: int, block_s: float | None = None) -> None:
        """Fetch from every class of which fewer than `max_tasks` are here; with `block_s`, wait for the first."""
        wanted = {
            stream: ">"
            for stream, arrived in zip(self._streams, self._inbox.arrived, strict=True)
            if len(arrived) < max_tasks
        }
        if not wanted:
            return
        block_ms = None if block_s is None else max(1, math.ceil(block_s * 1000))
        answer = await self._client.xreadgroup(
            _GROUP, self._consumer, wanted, count=min(max_tasks, _MAX_BATCH), block=block_ms
        )
        for stream, entries in answer or ():
            level = self._streams.index(stream.decode())
            for entry_id, fields in entries:
                await self._receive(level, entry_id, fields, redeliveries=0)

    async def _read_when_there_is(self, max_tasks: int, block_s: float) -> None:
        """A read that waits, apart from who waits for it: what a cancelled read had taken would be held by nobody."""
        try:
            await self._read(max_tasks, block_s)
        except (RedisError, OSError) as error:
            self._note_trouble(error)
            await self._heal(error)
            await asyncio.sleep(_PAUSE_S)
        finally:
            self._reading = None
            self._arrived.set()

    async def _receive(
        self, level: int, entry_id: bytes, fields: dict[bytes, bytes], redeliveries: int
    ) -> None:
        data = fields.get(b"t", b"")
        try:
            task = decode_task(data)
        except InvalidTask as error:
            raw = data or msgspec.json.encode({str(k): str(v) for k, v in fields.items()})
            await self._give_back(
                [self._streams[level], self._delayed_key, self._dead_key],
                [_GROUP, self._consumer, entry_id, "dead", raw, str(error), self._clock()],
            )
            self._counts.dead_lettered += 1
            return
        if redeliveries:
            task = _replace(task, redeliveries=redeliveries)
        self._inbox.put(Delivery(task, level, entry_id))

    # -- inside: giving back ------------------------------------------------------------------------------------------

    async def _end(self, copies: list[Delivery[bytes]], details: list[Any]) -> bool:
        """Give the first copy back as `details` say, and forget the others."""
        task_id = copies[0].task.task_id
        async with self._asking():
            ended = await self._give_back_one(copies[0], details)
            for copy in copies[1:]:
                ended = await self._give_back_one(copy, details if not ended else ["gone", b""])
        self._inbox.settle(task_id)
        return ended

    async def _bury(self, copies: list[Delivery[bytes]], reason: str) -> bool:
        details = ["dead", self._encoded(copies[0].task), reason, self._clock()]
        buried = await self._end(copies, details)
        self._counts.dead_lettered += buried
        return buried

    async def _bury_one(self, delivery: Delivery[bytes], reason: str) -> None:
        details = ["dead", self._encoded(delivery.task), reason, self._clock()]
        self._counts.dead_lettered += await self._give_back_one(delivery, details)

    async def _give_back_one(self, delivery: Delivery[bytes], details: list[Any]) -> bool:
        keys = [self._streams[delivery.level], self._delayed_key, self._dead_key]
        return bool(
            await self._give_back(keys, [_GROUP, self._consumer, delivery.receipt, *details])
        )

    def _encoded(self, task: QueuedTask) -> bytes:
        """As it is stored: what the broker counts is not part of it. It fitted once, and its counts take few bytes."""
        return encode_task(_replace(task, redeliveries=0), self._max_bytes + 1024)

    # -- inside: leases and retries -----------------------------------------------------------------------------------

    async def _renew(self, deliveries: Sequence[Delivery[bytes]], passed_s: float = 0.0) -> bool:
        """Renew what is still held; whether any is."""
        any_held = False
        for level, stream in enumerate(self._streams):
            ids = [delivery.receipt for delivery in deliveries if delivery.level == level]
            if ids:
                milliseconds = math.floor(passed_s * 1000)
                answers = await self._extend([stream], [_GROUP, self._consumer, milliseconds, *ids])
                any_held = any_held or any(answers)
        return any_held

    async def _keep_leases(self) -> None:
        """Renew what waits in the inbox, or give it to others where nobody asks for it; take over what was left idle."""
        while True:
            wanted, self._wanted = self._wanted, 0
            await asyncio.sleep(self.lease_s / _LOOKS_PER_LEASE)
            try:
                if self._waiting:
                    self._wanted = self._wanted or wanted
                    await self._take_over()
                if wanted or self._wanted:
                    await self._renew(list(self._inbox.waiting()))
                else:
                    await self._hand_back(list(self._inbox.waiting()))
            except (RedisError, OSError) as error:
                self._note_trouble(error)
                await self._heal(error)

    async def _hand_back(self, deliveries: Sequence[Delivery[bytes]]) -> None:
        for delivery in deliveries:
            if delivery in self._inbox.arrived[delivery.level]:  # and not picked meanwhile
                self._inbox.arrived[delivery.level].remove(delivery)
                await self._give_back_one(delivery, ["ready", self._encoded(delivery.task)])

    async def _take_over(self) -> None:
        """Hold what others, or we, let lie for a lease: no more than is wanted here, because others may want the rest."""
        self._looked_s = asyncio.get_running_loop().time()
        idle_ms = math.ceil(self.lease_s * 1000)
        for level, stream in enumerate(self._streams):
            _, entries, *_ = await self._client.xautoclaim(
                stream, _GROUP, self._consumer, idle_ms, "0-0", count=max(1, self._wanted)
            )
            if entries:
                deliveries = {
                    row["message_id"]: row["times_delivered"]
                    for row in await self._client.xpending_range(
                        stream,
                        _GROUP,
                        entries[0][0],
                        entries[-1][0],
                        10 * _MAX_BATCH,
                        self._consumer,
                    )
                }
                for entry_id, fields in entries:
                    await self._redeliver(level, entry_id, fields, deliveries.get(entry_id, 2) - 1)
                self._arrived.set()

    async def _redeliver(
        self, level: int, entry_id: bytes, fields: dict[bytes, bytes], redeliveries: int
    ) -> None:
        for copies in self._inbox.all_held():
            if any(copy.receipt == entry_id for copy in copies):
                self._inbox.settle(copies[0].task.task_id)  # our own lease ended
        for arrived in self._inbox.arrived:
            for waiting in [d for d in arrived if d.receipt == entry_id]:
                arrived.remove(waiting)
        self._counts.redelivered += 1
        if redeliveries > self._delivery_limit:
            await self._give_back(
                [self._streams[level], self._delayed_key, self._dead_key],
                [
                    *(_GROUP, self._consumer, entry_id, "dead", fields.get(b"t", b"")),
                    *(f"lost {redeliveries} times; its lease ended", self._clock()),
                ],
            )
            self._counts.dead_lettered += 1
            return
        await self._receive(level, entry_id, fields, redeliveries)

    async def _move_retries(self) -> None:
        """Move retries that are due, by the server's clock."""
        while True:
            wait_s = _LOOK_FOR_DUE_S
            try:
                due_in_ms = await self._move_due([self._delayed_key, *self._streams], [_MAX_BATCH])
                if due_in_ms >= 0:
                    wait_s = min(wait_s, due_in_ms / 1000)
            except (RedisError, OSError) as error:
                self._note_trouble(error)
                await self._heal(error)
            await asyncio.sleep(wait_s)

    # -- inside: the connection ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Inside, redis-py's errors become ours, and the queue exists on the server."""
        if self._closed:
            raise QueueClosed("the queue was closed; make another connection")
        if not self._started:
            async with self._starting:
                if not self._started:
                    await await_broker(self._start, self._where, self._start_limit_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except (RedisError, OSError, TimeoutError) as error:
            await self._heal(error)
            raise _translated(error, self._where) from error

    async def _start(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._make_groups()
                settings = {"levels": str(self._levels), "lease_s": f"{self.lease_s:g}"}
                for field, value in settings.items():
                    await self._client.hsetnx(self._settings_key, field, value)
                written = await self._client.hgetall(self._settings_key)
        except (RedisError, OSError, TimeoutError) as error:
            raise _translated(error, self._where) from error
        for field, value in settings.items():
            other = written[field.encode()].decode()
            if other != value:
                raise QueueMismatch(
                    f"the queue at {self._where} was made with {field}={other}, here it is {value}: use the same, or "
                    "another name"
                )
        self._started = True
        self._background = [
            asyncio.create_task(self._keep_leases(), name="background:redis-leases"),
            asyncio.create_task(self._move_retries(), name="background:redis-retries"),
        ]

    async def _make_groups(self) -> None:
        for stream in self._streams:
            try:
                await self._client.xgroup_create(stream, _GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def _heal(self, error: BaseException) -> None:
        """A server that lost its data has lost the groups as well."""
        if isinstance(error, ResponseError) and "NOGROUP" in str(error):
            try:
                await self._make_groups()
            except (RedisError, OSError) as again:
                self._note_trouble(again)

    def _note_trouble(self, error: BaseException) -> None:
        logger.debug("redis queue at %s: %s", self._where, error)


def _translated(error: BaseException, where: str) -> Exception:
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return AccessRefused(
            f"{where} refuses these credentials: {error}; correct the URL or the ACL"
        )
    if isinstance(error, OutOfMemoryError):
        return QueueFull(f"{where} is out of memory: {error}; wait, or raise maxmemory")
    text = str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        text = "no answer in time"
    return QueueUnavailable(f"{where}: {text}")


def _dead_letter(fields: dict[bytes, bytes]) -> DeadLetter:
    raw = fields.get(b"t", b"")
    reason = fields.get(b"reason", b"").decode()
    died_s = float(fields.get(b"died", b"0"))
    try:
        return DeadLetter(decode_task(raw), reason, died_s)
    except InvalidTask:
        return DeadLetter(None, reason, died_s, raw)


def _enqueued_s(fields: dict[bytes, bytes], now: float) -> float:
    try:
        enqueued_s = decode_task(fields.get(b"t", b"")).enqueued_s
    except InvalidTask:
        return now
    return now if enqueued_s is None else enqueued_s
