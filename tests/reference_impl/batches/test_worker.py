"""One request of a batch in virtual time: its money, its time, its repetitions and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from reference_impl.batches.port import Batch, BatchRequest
from reference_impl.batches.service import TASK_TYPE
from reference_impl.batches.worker import BatchWorker, call_id
from reference_impl.database.accounting import Accounting
from reference_impl.database.connect import build_accounting
from reference_impl.database.entries import KeyBudget, LedgerEntry, to_nanousd
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.deployment import DatabaseSpec, RetrySpec
from reference_impl.errors import InvalidRequest, NoInstance, Overloaded
from reference_impl.messages import ATTEMPT_STRIDE, Call, Completion, Emit, Usage
from reference_impl.prices import load_prices
from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import QueuedTask
from reference_impl.task_processor import TaskProcessor
from simulation import kernel

MODEL = "claude-haiku-4-5"
# 1,000 input tokens at $1 and 100 output tokens at $5 a million, at half price.
COST = to_nanousd((1000 * 1 + 100 * 5) / 1e6 / 2)


class Endpoint:
    """Answers after a second; `failures` come first, one a call."""

    def __init__(self, *failures: Exception) -> None:
        self.calls: list[Call] = []
        self.failures = list(failures)
        self.answer_s = 1.0

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        self.calls.append(call)
        call.trace.attempts += 1
        await asyncio.sleep(self.answer_s)
        if self.failures:
            raise self.failures.pop(0)
        return Completion(Usage(1000, 100), body=b'{"type":"message"}')

    async def aclose(self) -> None: ...


class Scene:
    """A batch of `number` requests of tenant "k" with a worker; `money` is what "k" may spend."""

    def __init__(self, endpoint: Endpoint, money: int | None = None) -> None:
        self.endpoint = endpoint
        self.ledger = MemoryLedger()
        self.store = self.ledger.batches()
        self.queue = MemoryQueue(lease_s=10.0)
        self.money = money
        self.expires_s = 1000.0
        self.timeout_s = 60.0
        self.concurrency = 100

        self.custom_id = "c{}"
        self.tags = False
        self.recorded: list[tuple[str, Call]] = []

    async def play(self, number: int, during: Callable[[], Awaitable[None]] | None = None) -> None:
        loop = asyncio.get_running_loop()
        accounting: Accounting = build_accounting(
            self.ledger,
            DatabaseSpec(ledger="memory", budget_requests=1),
            source="w",
            wall_clock=loop.time,
        )
        await accounting.start({} if self.money is None else {"k": self.money / 1e9})
        prompt = "word " * 650  # by three bytes a token, a little more than what is charged
        body = {
            "model": MODEL,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": prompt}],
        }
        params = msgspec.Raw(msgspec.json.encode(body))
        await self.store.create(
            Batch("b", "k", 0.0, self.expires_s, processing=number),
            [BatchRequest(self.custom_id.format(n), params) for n in range(number)],
        )
        worker = BatchWorker(
            self.endpoint,
            self.store,
            load_prices(),
            wall_clock=loop.time,
            budgets=accounting.budgets,
            timeout_s=self.timeout_s,
            instance="instance-1",
            tags=self.tags,
            on_recorded=lambda key, call: self.recorded.append((key, call)),
        )
        processor = TaskProcessor(
            self.queue,
            retry=RetrySpec(backoff_s=1.0),
            effects=worker,
            concurrency=self.concurrency,
        )
        worker.register(processor)
        await self.queue.enqueue_many(
            [QueuedTask(f"b/{n}", TASK_TYPE, None, max_retries=3) for n in range(number)]
        )
        running = asyncio.create_task(processor.process_queue())
        if during is not None:
            await during()
        while (await self.batch()).processing:
            await asyncio.sleep(1.0)
        await processor.drain()
        await running
        await accounting.aclose()

    async def batch(self) -> Batch:
        batch = await self.store.get("b")
        assert batch is not None
        return batch

    async def rows(self) -> list[LedgerEntry]:
        return [row async for page in self.ledger.entries() for row in page]

    async def results(self) -> list[Any]:
        return [msgspec.json.decode(r) for _, _, r in await self.store.results("b", -1, 100)]


def test_an_answer_is_recorded_with_its_row_at_half_price() -> None:
    async def main() -> None:
        scene = Scene(Endpoint())
        await scene.play(1)
        assert await scene.results() == [{"type": "succeeded", "message": {"type": "message"}}]
        (row,) = await scene.rows()
        assert row == LedgerEntry(
            entry_id="b/0",
            at_s=1.0,
            key_id="k",
            model=MODEL,
            kind="batch",
            attempts=1,
            input_tokens=1000,
            output_tokens=100,
            cost_nanousd=COST,
            latency_s=1.0,
            instance="instance-1",
        )
        (call,) = scene.endpoint.calls
        assert (call.tenant, call.request_id, call.attempt) == ("k", call_id("b/0"), 0)

    kernel.run(main())


def test_a_failure_is_tried_again_as_another_attempt_and_all_are_in_the_books() -> None:
    async def main() -> None:
        scene = Scene(Endpoint(Overloaded("busy"), NoInstance("draining")))
        await scene.play(1)
        assert (await scene.batch()).succeeded == 1
        (row,) = await scene.rows()
        assert (row.outcome, row.attempts, row.cost_nanousd) == ("ok", 3, COST)
        assert [call.attempt for call in scene.endpoint.calls] == [0, 100, 200]
        assert {call.request_id for call in scene.endpoint.calls} == {call_id("b/0")}

    kernel.run(main())


@pytest.mark.parametrize(
    ("failures", "kind", "outcome", "attempts"),
    [
        ([InvalidRequest("no such field")], "invalid_request_error", "client_error", 1),
        ([Overloaded("busy")] * 4, "overloaded_error", "overloaded", 4),
    ],
)
def test_what_stays_wrong_is_an_errored_result(
    failures: list[Exception], kind: str, outcome: str, attempts: int
) -> None:
    async def main() -> None:
        scene = Scene(Endpoint(*failures))
        await scene.play(1)
        ((result,), (row,)) = await scene.results(), await scene.rows()
        assert (result["type"], result["error"]["error"]["type"]) == ("errored", kind)
        assert (row.outcome, row.attempts, row.cost_nanousd) == (outcome, attempts, 0)

    kernel.run(main())


def test_an_answer_that_takes_too_long_is_an_errored_result_in_the_end() -> None:
    async def main() -> None:
        endpoint = Endpoint()
        endpoint.answer_s = 1e6
        scene = Scene(endpoint)
        scene.timeout_s = 5.0
        await scene.play(1)
        (result,) = await scene.results()
        assert result["error"]["error"] == {
            "type": "timeout_error",
            "message": "no answer within 5 s",
        }
        assert len(endpoint.calls) == 4

    kernel.run(main())


def test_a_batch_overspends_no_budget_and_what_it_does_not_use_is_free_again() -> None:
    async def main() -> None:
        # Enough for ten at what they cost; a reservation is for the most that an answer may cost.
        scene = Scene(Endpoint(), money=10 * COST)
        await scene.play(100)
        batch = await scene.batch()
        assert batch.succeeded + batch.errored == 100
        assert 0 < batch.succeeded <= 10
        refused = [r for r in await scene.results() if r["type"] == "errored"]
        assert {r["error"]["error"]["type"] for r in refused} == {"billing_error"}
        assert await scene.ledger.budgets() == [
            KeyBudget("k", 10 * COST, batch.succeeded * COST, held_nanousd=0)
        ]
        assert len(await scene.rows()) == 100

    kernel.run(main())


def test_what_is_canceled_or_expired_costs_nothing() -> None:
    async def main() -> None:
        scene = Scene(Endpoint())
        scene.expires_s = -50.0
        await scene.play(2)
        batch = await scene.batch()
        assert (batch.expired, batch.ended_s, await scene.rows()) == (2, -50.0, [])
        scene = Scene(Endpoint(Overloaded("busy")))

        async def cancel() -> None:
            await asyncio.sleep(0.5)
            await scene.store.cancel("b", 0.5)

        await scene.play(1, cancel)
        assert ((await scene.batch()).canceled, await scene.rows()) == (1, [])
        assert len(scene.endpoint.calls) == 1

    kernel.run(main())


def test_a_task_that_comes_twice_is_answered_once() -> None:
    async def main() -> None:
        scene = Scene(Endpoint())

        async def again() -> None:
            await asyncio.sleep(5)
            await scene.queue.enqueue(QueuedTask("b/0", TASK_TYPE, None))
            await scene.queue.enqueue(QueuedTask("gone/7", TASK_TYPE, None))
            await asyncio.sleep(5)

        await scene.play(1, again)
        assert (len(scene.endpoint.calls), len(await scene.rows())) == (1, 1)
        assert (await scene.queue.statistics()).depth == 0

    kernel.run(main())


def test_the_trace_of_a_result_says_how_long_its_request_waited_in_the_queue() -> None:
    async def main() -> None:
        scene = Scene(Endpoint())
        scene.concurrency = 1
        await scene.play(3)
        assert [key for key, _ in scene.recorded] == ["b/0", "b/1", "b/2"]
        waits_s = [call.trace.queue_wait_s for _, call in scene.recorded]
        assert waits_s == pytest.approx([0.0, 1.0, 2.0])
        assert {call.trace.instance for _, call in scene.recorded} == {"instance-1"}

    kernel.run(main())


def test_a_run_that_was_not_the_first_to_answer_is_not_told() -> None:
    async def main() -> None:
        scene = Scene(Endpoint())

        async def meanwhile() -> None:
            await asyncio.sleep(0.5)
            await scene.store.record("b", 0, "succeeded", b"{}", 0.5)

        await scene.play(2, meanwhile)
        assert [key for key, _ in scene.recorded] == ["b/1"]

    kernel.run(main())


def test_a_custom_id_that_is_a_tag_names_the_call_where_tags_are_heeded() -> None:
    async def main() -> None:
        for heeded in (True, False):
            scene = Scene(Endpoint(Overloaded("busy")))
            scene.custom_id = "twinload-7-8-900-50"
            scene.tags = heeded
            await scene.play(1)
            tags = [call.tag for call in scene.endpoint.calls]
            request_id = 7 if heeded else call_id("b/0")
            assert [tag and (tag.request_id, tag.attempt) for tag in tags] == [
                (request_id, 0),
                (request_id, ATTEMPT_STRIDE),
            ]
            tag = tags[0]
            assert tag is not None
            sizes = (tag.prompt_id, tag.input_tokens, tag.output_tokens)
            assert sizes == ((8, 900, 50) if heeded else (0, 0, 0))

    kernel.run(main())
