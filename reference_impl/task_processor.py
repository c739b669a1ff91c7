"""TaskProcessor: takes tasks from a queue, runs their handlers, and gives every task back as what became of it.

At most `concurrency` tasks are held, so a slow handler slows the taking and not the memory (back-pressure). While a task
runs its lease is renewed; a task whose lease was lost nevertheless is somebody else's, and its handler is cancelled. Failures
are retried by the queue, after an exponential backoff with full jitter; a retry that the budget refuses is not dropped but
waits as long as a retry may.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeVar

import msgspec

from reference_impl.deployment import RetrySpec
from reference_impl.errors import ServiceError
from reference_impl.overload.jitter import Uniform, full_jitter_s, hashed_uniform
from reference_impl.overload.outage import outlast
from reference_impl.overload.retry_budget import RetryBudget
from reference_impl.queues.effects import EffectStore, EffectsUnavailable, MemoryEffects
from reference_impl.queues.errors import QueueError, QueueUnavailable
from reference_impl.queues.handling import (
    Handler,
    PermanentFailure,
    Registration,
    Turn,
    refuse_plain_function,
    run_handler,
)
from reference_impl.queues.port import MessageQueue, QueuedTask

__all__ = ["PermanentFailure", "TaskOutcome", "TaskProcessor", "TaskProcessorStatistics", "TaskRun"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

# done: took effect. duplicate: had taken effect before. retry, dead: failed. handed_back: the processor stopped first.
# lost: the lease was lost, or the queue could not be told; the task will come again.
TaskOutcome = Literal["done", "duplicate", "retry", "dead", "handed_back", "lost"]

_HEARTBEATS_PER_LEASE = 3


class TaskRun(msgspec.Struct, frozen=True):
    """One run of one task, for records. `runs` counts those of its idempotency key so far, this one and retries among them."""

    task_id: str
    task_type: str
    outcome: TaskOutcome
    queue_wait_s: float
    run_s: float
    retry_count: int
    redeliveries: int
    runs: int
    reason: str = ""


class TaskProcessorStatistics(msgspec.Struct, frozen=True):
    """Runs by outcome since the start, those that repeated another, retries that the budget slowed, and tasks held now."""

    done: int
    duplicate: int
    retry: int
    dead: int
    handed_back: int
    lost: int
    wasted_runs: int
    slowed_retries: int
    held: int


class _Running(msgspec.Struct):
    task: QueuedTask
    work: asyncio.Task[None]
    settling: bool = False
    lost: bool = False


class TaskProcessor:
    """Runs the tasks of `queue`.

    Args:
        queue: where they come from. It stays its owner's, who closes it after the processor has been drained.
        concurrency: tasks held at once.
        timeout_s: for a run, where the type has no other.
        retry: backoff and budget; `max_attempts` is the task's own business (`max_retries`).
        effects: remembers what took effect; None: in this process's memory.
        uniform: luck of the backoff by (purpose, checksum of the task id, retry).
        clock: the clock of `enqueued_s`; None: the loop's.
        on_done: told of every run.
    """

    def __init__(
        self,
        queue: MessageQueue,
        *,
        concurrency: int = 10,
        timeout_s: float = 300.0,
        retry: RetrySpec = RetrySpec(),  # noqa: B008 - immutable
        effects: EffectStore | None = None,
        uniform: Uniform | None = None,
        clock: Callable[[], float] | None = None,
        on_done: Callable[[TaskRun], None] | None = None,
    ) -> None:
        if concurrency < 1 or timeout_s <= 0:
            raise ValueError(
                f"concurrency ({concurrency}) must be at least 1 and timeout_s ({timeout_s}) positive"
            )
        self._queue = queue
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._retry = retry
        self._budget = RetryBudget(retry.budget_fraction, retry.budget_reserve_per_s)
        self._effects = effects if effects is not None else MemoryEffects()
        self._uniform = uniform if uniform is not None else hashed_uniform(0)
        self._clock = clock
        self._on_done = on_done
        self._handlers: dict[str, Registration] = {}
        self._running: dict[int, _Running] = {}
        self._serial = itertools.count()
        self._by_key: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Event()
        self._draining = False
        self._taking: asyncio.Task[list[QueuedTask]] | None = None
        self._queue_is_there = True
        self._outcomes: dict[TaskOutcome, int] = {}
        self._wasted = 0
        self._slowed = 0

    def register_handler(
        self,
        task_type: str,
        handler: Handler,
        *,
        timeout_s: float | None = None,
        whole_task: bool = False,
    ) -> None:
        """Run `await handler(payload)` for tasks of this type, or `handler(task)` with `whole_task`.

        What it returns, as JSON, is the task's effect. Raises ValueError where the type has a handler already, TypeError where
        this one is no coroutine function.
        """
        refuse_plain_function(task_type, handler)
        if task_type in self._handlers:
            raise ValueError(f"tasks of type {task_type!r} have a handler already")
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        if limit_s <= 0:
            raise ValueError(f"timeout_s is {timeout_s}: expected more than 0 seconds")
        self._handlers[task_type] = Registration(handler, limit_s, whole_task)

    async def process_queue(self) -> None:
        """Take and run tasks until `drain`. A broker that is away is waited for; other errors of the queue are raised.

        So is an error that nobody foresaw and that ends the renewing of leases: without it every long task would run twice.
        """
        heartbeat = asyncio.create_task(self._keep_leases(), name="background:task-heartbeat")
        heartbeat.add_done_callback(lambda _: self._interrupt())
        try:
            while not self._draining and not heartbeat.done():
                if len(self._running) >= self._concurrency:
                    await self._change()
                    continue
                tasks = await self._take()
                if self._draining or heartbeat.done():
                    for task in reversed(tasks):
                        await self._told(self._queue.release(task.task_id))
                    break
                self._note_queue(there=True)
                for task in tasks:
                    self._start(task)
            while self._running and not heartbeat.done():
                await self._change()
            if heartbeat.done():
                await heartbeat
        finally:
            for running in self._running.values():
                running.work.cancel()
            await asyncio.gather(
                *(running.work for running in self._running.values()), return_exceptions=True
            )
            heartbeat.cancel()
            await asyncio.gather(heartbeat, return_exceptions=True)

    async def drain(self, limit_s: float = 30.0) -> None:
        """Take nothing more; finish what runs within `limit_s`, hand the rest back. `process_queue` returns then."""
        self._draining = True
        self._interrupt()
        try:
            async with asyncio.timeout(limit_s):
                while self._running:
                    await self._change()
        except TimeoutError:
            if limit_s > 0:  # else nobody expected them to
                logger.warning(
                    "%d tasks did not end within %g s and are handed back",
                    len(self._running),
                    limit_s,
                )
        left = [running.work for running in self._running.values()]
        for work in left:
            work.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def statistics(self) -> TaskProcessorStatistics:
        count = self._outcomes.get
        return TaskProcessorStatistics(
            done=count("done", 0),
            duplicate=count("duplicate", 0),
            retry=count("retry", 0),
            dead=count("dead", 0),
            handed_back=count("handed_back", 0),
            lost=count("lost", 0),
            wasted_runs=self._wasted,
            slowed_retries=self._slowed,
            held=len(self._running),
        )

    # -- taking -------------------------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        """Have `process_queue` look again at what it does."""
        self._changed.set()
        if self._taking is not None:
            self._taking.cancel()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _take(self) -> list[QueuedTask]:
        """What there is room for, at least one; none if `_interrupt` ended the wait, of which an outage is part.

        In a task of its own, which can be cancelled: what that held then goes back when the queue is closed.
        """
        self._taking = asyncio.create_task(
            outlast(
                lambda: self._queue.dequeue_many(self._concurrency - len(self._running), math.inf),
                QueueUnavailable,
                purpose="queue outage",
                retry=self._retry,
                uniform=self._uniform,
                on_away=lambda error: self._note_queue(there=False, why=str(error)),
            ),
            name="background:task-dequeue",
        )
        try:
            return await self._taking
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if this is None or this.cancelling():
                self._taking.cancel()
                raise
            return []
        finally:
            self._taking = None

    def _start(self, task: QueuedTask) -> None:
        """A run has a number of its own: its task may come again before a lost run of it has ended."""
        number = next(self._serial)
        work = asyncio.create_task(self._process(number, task), name=f"task-{task.task_id}")
        self._running[number] = _Running(task, work)
        work.add_done_callback(lambda done: self._ended(number, done))

    def _ended(self, number: int, work: asyncio.Task[None]) -> None:
        running = self._running.pop(number)
        self._changed.set()
        if not work.cancelled() and (error := work.exception()) is not None:
            logger.error(
                "task %r: an error that nobody foresaw", running.task.task_id, exc_info=error
            )

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._queue.lease_s / _HEARTBEATS_PER_LEASE)
            await asyncio.gather(*(self._keep(running) for running in self._running.values()))

    async def _keep(self, running: _Running) -> None:
        try:
            held = await self._queue.extend(running.task.task_id)
        except QueueError as error:
            self._note_queue(there=False, why=str(error))
            return
        if not held and not running.settling and not running.work.done():
            running.lost = True
            running.work.cancel()

    # -- one task -----------------------------------------------------------------------------------------------------

    async def _process(self, number: int, task: QueuedTask) -> None:
        running = self._running[number]
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        runs = 0
        outcome: TaskOutcome = "lost"
        reason = ""
        try:
            async with Turn(self._by_key, task.key):
                registration = self._handlers.get(task.task_type)
                if registration is None:
                    known = ", ".join(sorted(self._handlers)) or "none"
                    reason = f"no handler for tasks of type {task.task_type!r} (there are: {known})"
                    outcome = await self._reject(running, reason)
                    return
                begun = await self._insist(lambda: self._effects.begin(task.key))
                runs = begun.runs
                if begun.effect is None:
                    # More runs than attempts: one was cut off, and is made again.
                    self._wasted += runs > task.earlier_attempts + task.retry_count + 1
                    self._budget.deposit(loop.time())
                    effect = await run_handler(registration, task)
                    first = await self._insist(lambda: self._effects.finish(task.key, effect))
                    outcome = "done" if first else "duplicate"
                else:
                    outcome = "duplicate"
        except asyncio.CancelledError:
            if not running.lost and await self._told(self._queue.release(task.task_id)):
                outcome = "handed_back"
            raise
        except PermanentFailure as error:
            reason = str(error) or "the handler gave no reason"
            outcome = await self._reject(running, reason)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its task's failure
            reason = _reason(error)
            if isinstance(error, ServiceError) and not error.retryable:
                outcome = await self._reject(running, reason)
            else:
                outcome = await self._nack(running, error, reason)
        else:
            running.settling = True
            if not await self._told(self._queue.ack(task.task_id)):
                reason = "it could not be acknowledged and will come again"
        finally:
            self._account(task, outcome, started_s, runs, reason)

    async def _reject(self, running: _Running, reason: str) -> TaskOutcome:
        running.settling = True
        rejected = await self._told(self._queue.reject(running.task.task_id, reason))
        return "dead" if rejected else "lost"

    async def _nack(self, running: _Running, error: Exception, reason: str) -> TaskOutcome:
        running.settling = True
        task = running.task
        u = self._uniform("task", zlib.crc32(task.task_id.encode()), task.retry_count)
        delay_s = full_jitter_s(self._retry, min(task.retry_count, 60), u)
        if isinstance(error, ServiceError) and error.retry_after_s is not None:
            delay_s = max(delay_s, error.retry_after_s)
        if not self._budget.try_withdraw(asyncio.get_running_loop().time()):
            self._slowed += 1
            delay_s = max(delay_s, self._retry.backoff_max_s)
        return await self._told(self._queue.nack(task.task_id, delay_s, reason)) or "lost"

    async def _told(self, settling: Coroutine[Any, Any, T]) -> T | None:
        """What the queue says; None if it is away, or refuses: the lease will end, and the task come again."""
        try:
            return await settling
        except QueueError as error:
            self._note_queue(there=False, why=str(error))
            return None

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the effect store until it answers: the lease is renewed meanwhile, and a result in hand is worth keeping."""
        return await outlast(
            ask,
            EffectsUnavailable,
            purpose="effects outage",
            retry=self._retry,
            uniform=self._uniform,
            on_away=lambda error: logger.warning("the effect store is away: %s", error),
        )

    # -- books --------------------------------------------------------------------------------------------------------

    def _account(
        self, task: QueuedTask, outcome: TaskOutcome, started_s: float, runs: int, reason: str
    ) -> None:
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
        if self._on_done is None:
            return
        now_s = asyncio.get_running_loop().time()
        run_s = now_s - started_s
        waited_s = 0.0
        if task.enqueued_s is not None:
            since_s = (self._clock() if self._clock is not None else now_s) - task.enqueued_s
            waited_s = max(0.0, since_s - run_s)
        self._on_done(
            TaskRun(
                task_id=task.task_id,
                task_type=task.task_type,
                outcome=outcome,
                queue_wait_s=waited_s,
                run_s=run_s,
                retry_count=task.retry_count,
                redeliveries=task.redeliveries,
                runs=runs,
                reason=reason,
            )
        )

    def _note_queue(self, *, there: bool, why: str = "") -> None:
        """Log when the queue goes and comes, not each call that it fails."""
        if there != self._queue_is_there:
            self._queue_is_there = there
            if there:
                logger.warning("the queue answers again")
            else:
                logger.warning("the queue is away: %s", why)


def _reason(error: Exception) -> str:
    text = error.message if isinstance(error, ServiceError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
