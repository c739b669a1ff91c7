"""The batch side of a virtual deployment: the broker, the gateway's service over it, and what each instance does with the tasks.

All of it is the code that runs live; modelled are the broker, the database and the way to both.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable

from reference_impl.batches.consumer import BatchConsumer
from reference_impl.batches.port import BatchStore
from reference_impl.batches.service import BatchService
from reference_impl.compute import Compute
from reference_impl.database.connect import build_accounting
from reference_impl.instances.instance import Instance
from reference_impl.messages import Call
from reference_impl.overload.jitter import hashed_uniform
from reference_impl.prices import load_prices
from reference_impl.queues.station import QueueStation
from reference_impl.telemetry import StationSample
from simulation.models.broker import Broker, VirtualQueue
from simulation.models.database import DatabaseServer, VirtualLedger, VirtualPool
from simulation.scenario.schema import Scenario

__all__ = ["BatchWork", "InstanceBatches"]


class BatchWork:
    """Must be made on the running loop.

    Args:
        scenario: its deployment has a queue.
        database: keeps the batches. store: the gateway's connections to it.
        compute: the gateway's CPU.
        on_recorded: told every result that an instance recorded: the task's key, and the call with its trace.

    Attributes:
        service: the gateway's. broker: for outages.
    """

    def __init__(
        self,
        scenario: Scenario,
        database: DatabaseServer,
        store: BatchStore,
        compute: Compute,
        on_recorded: Callable[[str, Call], None],
    ) -> None:
        spec = scenario.deployment.queue
        self._scenario = scenario
        self._database = database
        self._on_recorded = on_recorded
        self.broker = Broker(seed=scenario.seed, lease_s=spec.lease_s, levels=1)
        self._queue = VirtualQueue(self.broker, "gateway")
        self._station = QueueStation()
        numbers = itertools.count()
        self.service = BatchService(
            store,
            self._queue,
            asyncio.get_running_loop().time,
            max_retries=spec.max_retries,
            compute=compute,
            new_id=lambda: _batch_id(scenario.seed, next(numbers)),
        )

    def instance(self, instance_id: str, instance: Instance) -> InstanceBatches:
        """The consumer of an instance that has just booted, over connections of its own; it starts at once."""
        scenario, deployment = self._scenario, self._scenario.deployment
        time = asyncio.get_running_loop().time
        queue = VirtualQueue(self.broker, instance_id)
        size = 1
        if deployment.database.ledger != "sqlite":
            size = min(deployment.database.max_size, deployment.queue.concurrency)
        pool = VirtualPool(
            self._database,
            size,
            min_size=1,
            behind_pgbouncer=deployment.database.behind_pgbouncer,
            acquire_timeout_s=deployment.database.acquire_timeout_s,
            statement_timeout_s=deployment.database.statement_timeout_s,
        )
        accounting = build_accounting(
            VirtualLedger(self._database, pool),
            deployment.database,
            source=instance_id,
            wall_clock=time,
        )
        consumer = BatchConsumer(
            deployment.queue,
            queue,
            accounting,
            load_prices(),
            uniform=hashed_uniform(scenario.seed),
            wall_clock=time,
            instance=instance_id,
            tags=True,
        )
        consumer.start(instance, self._on_recorded)
        return InstanceBatches(consumer, queue)

    def samples(self, *, origin_s: float) -> list[StationSample]:
        """The queue since the last sample; none while the broker is away."""
        if self.broker.outage is None:
            self._station.note(self._queue.seen())
        return self._station.sample(origin_s=origin_s)


class InstanceBatches:
    """One instance's consumer, and what befalls it with its process."""

    def __init__(self, consumer: BatchConsumer, queue: VirtualQueue) -> None:
        self._consumer = consumer
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._hung_until_s = 0.0
        self._ending: asyncio.Task[None] | None = None

    async def drain(self, limit_s: float) -> None:
        await self._consumer.drain(limit_s)

    async def aclose(self) -> None:
        await self._consumer.aclose()

    def samples(self, *, origin_s: float) -> list[StationSample]:
        return self._consumer.samples(origin_s=origin_s)

    def crash(self) -> None:
        """The process dies: its connection breaks, and what it was doing is done no further."""
        self._queue.crash()
        self._ending = self._loop.create_task(
            self._consumer.abandon(), name="background:crashed batches"
        )

    def hang(self, until_s: float) -> None:
        """The process stands still: nothing that the broker says is heard, and no lease is kept."""
        self._hung_until_s = max(self._hung_until_s, until_s)
        self._queue.cut()
        self._loop.call_at(until_s, self._go_on)

    def _go_on(self) -> None:
        if self._loop.time() >= self._hung_until_s:
            self._queue.mend()


def _batch_id(seed: int, number: int) -> str:
    """As long as a live one, and the same for the same seed."""
    return f"msgbatch_{hashlib.blake2b(f'{seed}/batch id/{number}'.encode(), digest_size=12).hexdigest()}"
