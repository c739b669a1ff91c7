"""A batch whose ledger or queue fails halfway: it is accepted or refused as a whole, and what was left is finished. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from reference_impl.batches.port import Batch, BatchRequest
from reference_impl.batches.service import BatchService
from reference_impl.batches.worker import BatchWorker
from reference_impl.database.errors import DatabaseUnavailable
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.errors import Rejected
from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.prices import load_prices
from reference_impl.queues.errors import QueueFull
from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import QueuedTask
from reference_impl.task_processor import TaskProcessor
from simulation import kernel

REQUESTS = [
    BatchRequest(f"c{n}", msgspec.Raw(b'{"model":"m","max_tokens":1,"messages":[]}'))
    for n in range(3)
]


class Store:
    """The batches of `ledger`, whose calls in `failing` are done and not confirmed, or with `lost` not done."""

    def __init__(self, ledger: MemoryLedger, *failing: str, lost: bool = True) -> None:
        self._batches = ledger.batches()
        self.failing = set(failing)
        self.lost = lost

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            if name not in self.failing:
                return await getattr(self._batches, name)(*args)
            if not self.lost:
                await getattr(self._batches, name)(*args)
            raise DatabaseUnavailable(f"{name}: the connection was lost")

        return call


class FullQueue(MemoryQueue):
    """Takes tasks, and says that it has not."""

    async def enqueue_many(self, tasks: Sequence[QueuedTask]) -> list[str]:
        await super().enqueue_many(tasks)
        raise QueueFull("no room")


class Endpoint:
    """Answers in a second."""

    def __init__(self) -> None:
        self.calls = 0

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        self.calls += 1
        await asyncio.sleep(1.0)
        return Completion(Usage(1, 1), body=b"{}")

    async def aclose(self) -> None: ...


class Work:
    """An instance that answers the requests of `ledger` in `queue`, while the block lasts."""

    def __init__(self, ledger: MemoryLedger, queue: MemoryQueue, concurrency: int = 2) -> None:
        self.endpoint = Endpoint()
        worker = BatchWorker(
            self.endpoint,
            ledger.batches(),
            load_prices(),
            wall_clock=asyncio.get_running_loop().time,
        )
        self._processor = TaskProcessor(queue, effects=worker, concurrency=concurrency)
        worker.register(self._processor)

    async def __aenter__(self) -> Endpoint:
        self._running = asyncio.create_task(self._processor.process_queue())
        return self.endpoint

    async def __aexit__(self, *_: object) -> None:
        await self._processor.drain(0)
        await self._running


def service_of(store: Any, queue: MemoryQueue) -> BatchService:
    return BatchService(store, queue, asyncio.get_running_loop().time)


async def debits(ledger: MemoryLedger) -> list[str]:
    return sorted([row.entry_id async for page in ledger.entries() for row in page])


def test_a_batch_that_is_in_the_queue_is_accepted_and_marked_when_the_ledger_answers() -> None:
    async def main() -> None:
        ledger, queue = MemoryLedger(), MemoryQueue()
        store = Store(ledger, "mark_enqueued")
        service = service_of(store, queue)
        batch = await service.create("k", REQUESTS)
        await asyncio.sleep(10.0)
        assert set(await ledger.batches().not_enqueued()) == {batch.batch_id}
        store.failing.clear()
        await service.mended()
        assert await ledger.batches().not_enqueued() == {}
        await service.aclose()

    kernel.run(main())


def test_what_ran_already_when_it_is_enqueued_again_is_called_and_debited_once() -> None:
    async def main() -> None:
        ledger, queue = MemoryLedger(), MemoryQueue()
        store = Store(ledger, "mark_enqueued")
        batch = await service_of(store, queue).create("k", REQUESTS)
        async with Work(ledger, queue) as endpoint:
            await asyncio.sleep(1.5)  # two have their results, the third is being answered
            next_start = service_of(ledger.batches(), queue)
            await next_start.start()
            await next_start.mended()
            await asyncio.sleep(10.0)
            seen = await next_start.retrieve("k", batch.batch_id)
            assert (seen.status, seen.succeeded, endpoint.calls) == ("ended", 3, 3)
            assert await debits(ledger) == [f"{batch.batch_id}/{n}" for n in range(3)]
            assert (await queue.statistics()).depth == 0

    kernel.run(main())


def test_a_batch_that_the_queue_refused_is_deleted_when_the_ledger_answers() -> None:
    async def main() -> None:
        ledger, queue = MemoryLedger(), FullQueue()
        store = Store(ledger, "delete")
        service = service_of(store, queue)
        with pytest.raises(Rejected, match="takes no batch now"):
            await service.create("k", REQUESTS)
        await asyncio.sleep(10.0)
        assert len(await ledger.batches().not_enqueued()) == 1
        store.failing.clear()
        await service.mended()
        assert await ledger.batches().not_enqueued() == {}
        async with Work(ledger, queue) as endpoint:
            await asyncio.sleep(10.0)
            assert (endpoint.calls, await debits(ledger)) == (0, [])

    kernel.run(main())


def test_a_batch_that_was_stored_though_that_was_not_confirmed_is_deleted() -> None:
    async def main() -> None:
        ledger, queue = MemoryLedger(), MemoryQueue()
        service = service_of(Store(ledger, "create", lost=False), queue)
        with pytest.raises(DatabaseUnavailable):
            await service.create("k", REQUESTS)
        await service.mended()
        assert await ledger.batches().not_enqueued() == {}
        assert (await queue.statistics()).depth == 0

    kernel.run(main())


def test_what_a_crash_left_is_enqueued_when_the_ledger_answers_and_batches_are_taken_meanwhile() -> (
    None
):
    async def main() -> None:
        ledger, queue = MemoryLedger(), MemoryQueue()
        store = Store(ledger, "not_enqueued")
        left = Batch("left", "k", 0.0, 1e12, processing=3)
        await ledger.batches().create(left, REQUESTS)
        service = service_of(store, queue)
        await service.start()
        await asyncio.sleep(10.0)
        store.failing.add("mark_enqueued")  # so that only its own knowledge tells it apart
        new = await service.create("k", REQUESTS)
        store.failing.clear()
        await service.mended()
        assert await ledger.batches().not_enqueued() == {}
        tasks = [task.task_id for task in await queue.dequeue_many(10, 0.0)]
        assert tasks == [f"{batch_id}/{n}" for batch_id in (new.batch_id, "left") for n in range(3)]

    kernel.run(main())
