"""A run of tasks through workers that are processes, over a real broker, while a plan of faults is played.

The producer and each worker reach the broker by links of their own, which the plan cuts; the mock of the LLM and the store of
effects are reached directly. Afterwards each accepted task took effect once, nothing is left in the queue or among the dead
letters, and the mock's log is compared with the books: what a fault made the workers call again is waste, and bounded by what
they had in hand when it struck.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import msgspec

from reference_impl.queues.effects import EffectStatistics, EffectsUnavailable
from reference_impl.queues.errors import QueueUnavailable
from reference_impl.queues.port import MessageQueue, QueuedTask
from tests.faults.cuttable_link import Link
from tests.faults.queues.brokers import BrokerUnderTest
from tests.faults.queues.effects_at import AuditedEffects, effects_at
from tests.faults.queues.plan import Fault
from tests.faults.queues.worker_process import WorkerSettings, connect
from tests.faults.queues.workers import WorkerProcess
from tests.loadtests.mock.process import Mock
from tests.servers.valkey import unique_prefix

__all__ = ["CONCURRENCY", "Account", "Trial", "reconcile"]

CONCURRENCY: Final = 16
_BATCH: Final = 50
# How far the producer may be ahead of the effects, so that it is at work for the whole of the run.
_AHEAD: Final = 500
_LOOK_S: Final = 0.02
_AUDITS: Final = 100


class Account(msgspec.Struct, frozen=True):
    """What the books say afterwards, and what the workers that drained say that they did."""

    books: EffectStatistics
    duplicates: int
    played: int


class Trial:
    """One run.

    Args:
        broker: a running one. effects_url: of the store of effects. mock: of the LLM.
        tasks: how many. workers: how many at once, in processes of their own.
    """

    def __init__(
        self, broker: BrokerUnderTest, effects_url: str, mock: Mock, *, tasks: int, workers: int = 2
    ) -> None:
        self._broker = broker
        self._tasks = tasks
        self._name = unique_prefix()
        self._settings = WorkerSettings(
            "", self._name, mock.url, effects=effects_url, concurrency=CONCURRENCY, lease_s=2.0
        )
        self._effects: AuditedEffects = effects_at(effects_url, self._name)
        self._slots = workers
        self._workers: list[WorkerProcess] = []
        self._links: list[Link] = []
        self._done = 0
        self._progress = asyncio.Condition()
        self._played = 0
        self._sent = 0
        self._sending = False

    async def play(self, plan: Sequence[Fault]) -> Account:
        """Returns when every task took effect and the workers have drained."""
        async with AsyncExitStack() as stack:
            links = [Link(self._broker.port) for _ in range(self._slots + 1)]
            *self._links, producers = [await stack.enter_async_context(link) for link in links]
            queue = self._connect(self._broker.port)
            stack.push_async_callback(queue.close)
            source = self._connect(producers.port)
            stack.push_async_callback(source.close)
            stack.push_async_callback(self._effects.aclose)
            stack.push_async_callback(self._end_workers)
            async with asyncio.TaskGroup() as group:
                starts = [
                    group.create_task(self._start_worker(slot)) for slot in range(self._slots)
                ]
            self._workers = [start.result() for start in starts]
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch())
                group.create_task(self._produce(source))
                for fault in plan:
                    group.create_task(self._strike(fault, producers))
                await self._reach(self._tasks)
                watching.cancel()
            return await self._settle(queue)

    # -- the load -----------------------------------------------------------------------------------------------------

    async def _produce(self, queue: MessageQueue) -> None:
        """What is not confirmed is sent again, under the same key."""
        for start in range(0, self._tasks, _BATCH):
            batch = [
                QueuedTask(str(number), "call", {"n": number}, number % 3, max_retries=50)
                for number in range(start, min(start + _BATCH, self._tasks))
            ]
            await self._reach(start - min(_AHEAD, self._tasks // 4))
            while True:
                self._sending = True
                try:
                    await queue.enqueue_many(batch)
                    break
                except QueueUnavailable:
                    await asyncio.sleep(0.2)
                finally:
                    self._sending = False
            self._sent += len(batch)

    async def _watch(self) -> None:
        """Note how many tasks have taken effect."""
        while True:
            books = await self._asked(self._effects.statistics)
            async with self._progress:
                self._done = books.effects
                self._progress.notify_all()
            await asyncio.sleep(_LOOK_S)

    async def _reach(self, number: float) -> None:
        async with asyncio.timeout(120 + self._tasks / 20), self._progress:
            await self._progress.wait_for(lambda: self._done >= number)

    # -- the faults ---------------------------------------------------------------------------------------------------

    async def _strike(self, fault: Fault, producers: Link) -> None:
        await self._reach(fault.at * self._tasks)
        lasts_s = fault.lasts * self._broker.silence_s
        whom, how = fault.kind.split()
        if how == "killed":
            if whom == "broker":
                self._broker.kill()
                await self._broker.start()
            else:
                await self._workers[fault.victim].kill()
                self._workers[fault.victim] = await self._start_worker(fault.victim)
        elif how == "stopped":
            victim = self._broker if whom == "broker" else self._workers[fault.victim]
            victim.pause()
            await asyncio.sleep(lasts_s)
            victim.resume()
        else:
            link = producers if whom == "producer" else self._links[fault.victim]
            if how == "reset":
                if link is producers:
                    await self._hold_a_confirm(link)
                link.reset()
                link.mend()
            else:
                link.cut(fault.ways)
                await asyncio.sleep(lasts_s)
                link.mend(forget=fault.forget)
        self._played += 1

    async def _hold_a_confirm(self, link: Link) -> None:
        """Cut the way back, until the broker has accepted tasks and its word of it is on the way."""
        link.cut(("down",))
        while not self._sending and self._sent < self._tasks:
            await asyncio.sleep(_LOOK_S)
        before = link.waiting_bytes
        while self._sending and link.waiting_bytes == before:
            await asyncio.sleep(_LOOK_S)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _settle(self, queue: MessageQueue) -> Account:
        """Wait until the queue is empty, have the workers go, and look at every effect."""
        async with asyncio.timeout(120):
            while True:
                now = await queue.statistics()
                if now.depth == 0 and not now.held:
                    break
                await asyncio.sleep(0.1)
        counts = [await worker.drain() for worker in self._workers]
        assert sum(count["dead"] for count in counts) == 0
        assert (await queue.statistics()).dead == 0
        for start in range(0, self._tasks, _AUDITS):
            numbers = range(start, min(start + _AUDITS, self._tasks))
            found = await asyncio.gather(*(self._effects.effect(str(number)) for number in numbers))
            assert found == [b'{"debited":"%d"}' % number for number in numbers]
        books = await self._effects.statistics()
        return Account(books, sum(count["duplicate"] for count in counts), self._played)

    async def _asked(self, ask: Callable[[], Awaitable[EffectStatistics]]) -> EffectStatistics:
        """The store of effects may be what was just killed."""
        while True:
            try:
                return await ask()
            except EffectsUnavailable:
                await asyncio.sleep(_LOOK_S)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _connect(self, port: int) -> MessageQueue:
        settings = self._settings
        url = self._broker.url_at(port)
        return connect(url, self._name, settings.lease_s, settings.levels)

    async def _start_worker(self, slot: int) -> WorkerProcess:
        url = self._broker.url_at(self._links[slot].port)
        return await WorkerProcess.start(msgspec.structs.replace(self._settings, queue=url))

    async def _end_workers(self) -> None:
        for worker in self._workers:
            await worker.kill()


def most_wasted(plan: Sequence[Fault], workers: int) -> int:
    """What was in hand when each fault struck: of one worker, of all, or on its way to the broker."""
    in_hand = {"worker": CONCURRENCY, "broker": workers * CONCURRENCY, "producer": _BATCH}
    return sum(in_hand[fault.kind.split()[0]] for fault in plan)


def reconcile(
    account: Account, mock: Mock, plan: Sequence[Fault], *, tasks: int, workers: int = 2
) -> None:
    """Once the mock has ended, and its log is whole."""
    assert account.played == len(plan)
    books = account.books
    assert books.effects == tasks, "debited twice, or never"
    calls = [record["request_id"] for record in mock.records()]
    assert set(calls) == set(range(tasks)), "an effect without its call, or a call without task"
    assert len(calls) <= books.runs, "a call that the books do not show"
    wasted = len(calls) - tasks
    bound = most_wasted(plan, workers)
    kinds = ", ".join(fault.kind for fault in sorted(plan, key=lambda fault: fault.at))
    print(
        f"[{kinds}] {tasks} tasks, {len(calls)} calls, {books.runs} runs, {wasted} wasted of at most {bound}, "
        f"{account.duplicates} duplicates"
    )
    assert 0 <= wasted <= bound
