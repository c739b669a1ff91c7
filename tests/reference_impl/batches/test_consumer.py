"""The batch side of an instance whose ledger is away. In virtual time."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from reference_impl.batches.consumer import BatchConsumer
from reference_impl.batches.port import Batch, BatchRequest
from reference_impl.batches.service import TASK_TYPE
from reference_impl.database.connect import build_accounting
from reference_impl.deployment import DatabaseSpec, QueueSpec
from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.overload.jitter import hashed_uniform
from reference_impl.prices import load_prices
from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import QueuedTask
from simulation import kernel
from simulation.models.database import DatabaseServer, VirtualLedger, VirtualPool


class Endpoint:
    """Answers at once."""

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        return Completion(Usage(1, 1), body=b"{}")

    async def aclose(self) -> None: ...


def test_an_instance_takes_no_request_of_a_batch_before_its_ledger_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        time = asyncio.get_running_loop().time
        server, queue = DatabaseServer(), MemoryQueue()
        params = msgspec.Raw(b'{"model":"m","max_tokens":1,"messages":[]}')
        batches = server.ledger.batches()
        await batches.create(Batch("b", "k", 0.0, 1e12, processing=1), [BatchRequest("c", params)])
        await queue.enqueue(QueuedTask("b/0", TASK_TYPE, None))
        server.fail("refusing")
        accounting = build_accounting(
            VirtualLedger(server, VirtualPool(server, 2, min_size=1)),
            DatabaseSpec(ledger="postgres"),
            source="i",
            wall_clock=time,
        )
        consumer = BatchConsumer(
            QueueSpec(broker="redis"),
            queue,
            accounting,
            load_prices(),
            uniform=hashed_uniform(0),
            wall_clock=time,
            instance="i",
        )
        consumer.start(Endpoint())
        await asyncio.sleep(60.0)
        seen = await queue.statistics()
        assert (seen.ready[0], seen.held) == (1, 0)
        assert ["batches wait for the ledger" in r.message for r in caplog.records] == [True]
        server.recover()
        await asyncio.sleep(120.0)
        batch = await batches.get("b")
        assert batch is not None
        assert batch.succeeded == 1
        await consumer.aclose()

    kernel.run(main())
