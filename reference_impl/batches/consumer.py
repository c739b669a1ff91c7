"""The batch side of an instance: takes requests of batches from the queue while it has room, beside the calls it is sent.

Pulled rather than pushed: an instance that is busy takes less, one that dies gives its tasks to the others, and the calls that
people wait for meet no backlog of batches in front of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from reference_impl.batches.worker import BatchWorker
from reference_impl.database.accounting import Accounting
from reference_impl.database.errors import DatabaseError, DatabaseUnavailable, summary
from reference_impl.deployment import QueueSpec
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import Call
from reference_impl.overload.jitter import Uniform
from reference_impl.overload.outage import outlast
from reference_impl.prices import PriceTable
from reference_impl.queues.errors import QueueError
from reference_impl.queues.port import MessageQueue
from reference_impl.task_processor import TaskProcessor, TaskProcessorStatistics
from reference_impl.telemetry import StationSample

__all__ = ["BatchConsumer"]

log = logging.getLogger("twinload.batches")

_HAND_BACK_S: Final = 5.0


class BatchConsumer:
    """Works on the queue of batches.

    Args:
        spec: concurrency, retries, times.
        queue, accounting: closed with it; the ledger's store keeps the batches.
        prices: what answers cost.
        uniform: luck of the waits between attempts. wall_clock: Unix seconds.
        instance: named in the ledger's rows. tags: see `BatchWorker`.
    """

    def __init__(
        self,
        spec: QueueSpec,
        queue: MessageQueue,
        accounting: Accounting,
        prices: PriceTable,
        *,
        uniform: Uniform,
        wall_clock: Callable[[], float],
        instance: str,
        tags: bool = False,
    ) -> None:
        self._spec = spec
        self._queue = queue
        self._accounting = accounting
        self._prices = prices
        self._uniform = uniform
        self._wall_clock = wall_clock
        self._instance = instance
        self._tags = tags
        self._processor: TaskProcessor | None = None
        self._running: asyncio.Task[None] | None = None

    def start(
        self, port: MessagesPort, on_recorded: Callable[[str, Call], None] | None = None
    ) -> None:
        """Answer over `port`, which stays its owner's, as soon as ledger and queue are there. `on_recorded`: see `BatchWorker`."""
        worker = BatchWorker(
            port,
            self._accounting.store.batches(),
            self._prices,
            wall_clock=self._wall_clock,
            budgets=self._accounting.budgets,
            timeout_s=self._spec.timeout_s,
            instance=self._instance,
            tags=self._tags,
            on_recorded=on_recorded,
        )
        self._processor = TaskProcessor(
            self._queue,
            concurrency=self._spec.concurrency,
            retry=self._spec.retry,
            effects=worker,
            uniform=self._uniform,
            clock=self._wall_clock,
        )
        worker.register(self._processor)
        self._running = asyncio.create_task(self._run(self._processor), name="background:batches")

    async def drain(self, limit_s: float) -> None:
        """Take nothing more; finish what runs within `limit_s`, hand the rest back."""
        if self._processor is not None:
            await self._processor.drain(limit_s)

    async def aclose(self) -> None:
        """Hand back what is held, close queue and ledger."""
        await self.drain(0.0)
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        try:
            async with asyncio.timeout(_HAND_BACK_S):
                await self._queue.close()
        except (QueueError, TimeoutError) as error:
            log.warning("batches: what was held comes again when its lease ends: %s", error)
        await self._accounting.aclose()

    def samples(self, *, origin_s: float = 0.0) -> list[StationSample]:
        """The connections of its own to the ledger, since the last sample."""
        return [
            msgspec.structs.replace(sample, station=f"{self._instance} {sample.station}")
            for sample in self._accounting.store.samples(origin_s=origin_s)
        ]

    async def abandon(self) -> None:
        """End as a killed process does: nothing more is said to anybody. Queue and ledger hear of it by themselves."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._accounting.abandon()

    def statistics(self) -> TaskProcessorStatistics | None:
        """What became of the tasks so far; None before the start."""
        return None if self._processor is None else self._processor.statistics()

    async def _run(self, processor: TaskProcessor) -> None:
        try:
            await self._open()
            await processor.process_queue()
        except (DatabaseError, QueueError) as error:
            # The instance serves its other calls; the gateway met the same error when it started, and told it.
            log.error("batches are not worked on: %s", error)
        except Exception:
            log.exception("batches are not worked on: an error that nobody foresaw")

    async def _open(self) -> None:
        """Take no task before there is a ledger: it would be held, and keep a slot, for as long as that is away."""
        await outlast(
            self._accounting.store.open,
            DatabaseUnavailable,
            purpose="ledger outage",
            retry=self._spec.retry,
            uniform=self._uniform,
            on_away=lambda error: log.warning("batches wait for the ledger: %s", summary(error)),
        )
        await self._accounting.start({})
