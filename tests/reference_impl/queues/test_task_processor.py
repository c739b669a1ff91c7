"""TaskProcessor over a queue in memory, in virtual time: every way in which a run can end."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from reference_impl.deployment import RetrySpec
from reference_impl.errors import InvalidRequest, RateLimited
from reference_impl.queues.effects import Begun, EffectsUnavailable, MemoryEffects
from reference_impl.queues.errors import AccessRefused, QueueMismatch, QueueUnavailable
from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import Fate, QueuedTask
from reference_impl.task_processor import PermanentFailure, TaskProcessor, TaskRun
from simulation import kernel

RETRY = RetrySpec(backoff_s=1.0, backoff_max_s=8.0, budget_fraction=1.0, budget_reserve_per_s=100)


def task(name: str, task_type: str = "echo", **fields: Any) -> QueuedTask:
    return QueuedTask(name, task_type, {"name": name}, **fields)


@asynccontextmanager
async def processing(processor: TaskProcessor) -> AsyncIterator[asyncio.Task[None]]:
    running = asyncio.create_task(processor.process_queue())
    try:
        yield running
    finally:
        await processor.drain(0)
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], bool], limit_s: float = 1000.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


def play(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await body()

    kernel.run(main())


def test_a_task_is_handled_by_the_handler_of_its_type_and_acknowledged() -> None:
    async def body() -> None:
        queue = MemoryQueue()
        seen: list[Any] = []

        async def first(payload: Any) -> None:
            seen.append(("first", payload))

        async def second(given: QueuedTask) -> None:
            seen.append(("second", given.task_id))

        processor = TaskProcessor(queue)
        processor.register_handler("a", first)
        processor.register_handler("b", second, whole_task=True)
        await queue.enqueue_many([task("t-1", "a"), task("t-2", "b")])
        async with processing(processor):
            await until(lambda: processor.statistics().done == 2)
            await until(lambda: processor.statistics().held == 0)
        assert seen == [("first", {"name": "t-1"}), ("second", "t-2")]
        now = await queue.statistics()
        assert (now.depth, now.held, now.dead) == (0, 0, 0)

    play(body)


def test_a_type_has_one_handler() -> None:
    processor = TaskProcessor(MemoryQueue())

    async def handle(payload: Any) -> None: ...

    processor.register_handler("a", handle)
    with pytest.raises(ValueError, match="'a' have a handler already"):
        processor.register_handler("a", handle)


class Called:
    async def __call__(self, payload: Any) -> None: ...


def test_only_what_gives_a_coroutine_is_a_handler() -> None:
    processor = TaskProcessor(MemoryQueue())
    calls: list[Any] = []

    async def handle(payload: Any, more: int = 0) -> None: ...

    @functools.wraps(handle)
    def wrapped(payload: Any) -> Awaitable[None]:
        return handle(payload)

    plain: Any = calls.append
    with pytest.raises(TypeError, match=r"handler of 'a' is .*append.* `async def`"):
        processor.register_handler("a", plain)
    fitting: list[Any] = [handle, wrapped, functools.partial(handle, more=1), Called()]
    for name, handler in enumerate(fitting):
        processor.register_handler(str(name), handler)
    assert not calls


def test_an_unknown_type_is_dead_lettered_with_the_types_that_are_known() -> None:
    async def body() -> None:
        queue = MemoryQueue()
        processor = TaskProcessor(queue)

        async def handle(payload: Any) -> None: ...

        processor.register_handler("known", handle)
        await queue.enqueue(task("t", "unknown"))
        async with processing(processor):
            await until(lambda: processor.statistics().dead == 1)
        (letter,) = await queue.dead_letters()
        assert letter.reason == "no handler for tasks of type 'unknown' (there are: known)"

    play(body)


def test_failures_are_retried_with_growing_jittered_waits_and_then_dead() -> None:
    async def body() -> None:
        queue = MemoryQueue()
        loop = asyncio.get_running_loop()
        started_s: list[float] = []
        runs: list[TaskRun] = []

        async def fail(payload: Any) -> None:
            started_s.append(loop.time())
            raise ValueError("no luck")

        processor = TaskProcessor(queue, retry=RETRY, uniform=lambda *_: 0.5, on_done=runs.append)
        processor.register_handler("echo", fail)
        await queue.enqueue(task("t", max_retries=5))
        async with processing(processor):
            await until(lambda: processor.statistics().dead == 1)
        waits = [round(b - a, 6) for a, b in itertools.pairwise(started_s)]
        assert waits == [0.5, 1.0, 2.0, 4.0, 4.0]
        (letter,) = await queue.dead_letters()
        assert letter.reason == "failed 6 times: ValueError: no luck"
        assert [run.outcome for run in runs] == ["retry"] * 5 + ["dead"]
        assert [run.retry_count for run in runs] == [0, 1, 2, 3, 4, 5]
        assert processor.statistics().wasted_runs == 0, "a retry after a failure is no waste"

    play(body)


def test_a_replayed_dead_letter_is_no_waste_and_what_is_cut_off_after_it_is() -> None:
    async def body() -> None:
        queue = MemoryQueue(lease_s=30)
        runs: list[TaskRun] = []

        async def fail_at_first(payload: Any) -> None:
            if len(runs) < 3:
                raise ValueError("not yet")
            await asyncio.sleep(100)

        effects = MemoryEffects()
        processor = TaskProcessor(queue, retry=RETRY, effects=effects, on_done=runs.append)
        processor.register_handler("echo", fail_at_first)
        await queue.enqueue(task("t", max_retries=1))
        async with processing(processor):
            await until(lambda: processor.statistics().dead == 1)
            assert await queue.replay_dead_letters() == 1
            await until(lambda: processor.statistics().retry == 2)
            assert [run.runs for run in runs] == [1, 2, 3]
            assert processor.statistics().wasted_runs == 0
            await until(lambda: processor.statistics().held == 1)
        assert [run.outcome for run in runs] == ["retry", "dead", "retry", "handed_back"]
        again = TaskProcessor(queue, effects=effects)
        again.register_handler("echo", fail_at_first)
        async with processing(again):
            await until(lambda: again.statistics().done == 1)
        assert again.statistics().wasted_runs == 1

    play(body)


def test_a_retry_waits_as_long_as_the_peer_asked() -> None:
    async def body() -> None:
        queue = MemoryQueue()
        loop = asyncio.get_running_loop()
        started_s: list[float] = []

        async def limited(payload: Any) -> None:
            started_s.append(loop.time())
            if len(started_s) == 1:
                raise RateLimited("slow down", retry_after_s=30)

        processor = TaskProcessor(queue, retry=RETRY)
        processor.register_handler("echo", limited)
        await queue.enqueue(task("t"))
        async with processing(processor):
            await until(lambda: processor.statistics().done == 1)
        assert started_s[1] - started_s[0] == 30

    play(body)


def test_a_retry_waits_no_longer_than_a_queue_can_hold_it() -> None:
    async def body() -> None:
        queue = MemoryQueue()
        loop = asyncio.get_running_loop()
        started_s: list[float] = []

        async def limited(payload: Any) -> None:
            started_s.append(loop.time())
            if len(started_s) == 1:
                raise RateLimited("come back in thirty years", retry_after_s=9.9e8)

        processor = TaskProcessor(queue, retry=RETRY)
        processor.register_handler("echo", limited)
        await queue.enqueue(task("t"))
        async with processing(processor):
            await asyncio.sleep(24 * 86_400 - 1)
            assert len(started_s) == 1
            await until(lambda: processor.statistics().done == 1)
        assert started_s[1] - started_s[0] == pytest.approx(24 * 86_400)

    play(body)


def test_what_no_retry_can_help_is_dead_at_once() -> None:
    async def body() -> None:
        queue = MemoryQueue()

        async def refuse(payload: Any) -> object:
            if payload["name"] == "poison":
                raise PermanentFailure("this customer is gone")
            if payload["name"] == "object":
                return object()
            raise InvalidRequest("max_tokens: too many")

        processor = TaskProcessor(queue, retry=RETRY)
        processor.register_handler("echo", refuse)
        await queue.enqueue_many([task("poison"), task("invalid"), task("object")])
        async with processing(processor):
            await until(lambda: processor.statistics().dead == 3)
        assert [letter.reason for letter in await queue.dead_letters()] == [
            "this customer is gone",
            "InvalidRequest: max_tokens: too many",
            "the handler of 'echo' returned what is not JSON: Encoding objects of type object is unsupported",
        ]

    play(body)


def test_a_retry_beyond_the_budget_is_slowed_and_never_dropped() -> None:
    async def body() -> None:
        queue = MemoryQueue()
        retry = RetrySpec(
            backoff_s=0.001, backoff_max_s=50.0, budget_fraction=0.0, budget_reserve_per_s=0.0
        )
        loop = asyncio.get_running_loop()
        started_s: list[float] = []

        async def fail_once(payload: Any) -> None:
            started_s.append(loop.time())
            if len(started_s) == 1:
                raise ValueError

        processor = TaskProcessor(queue, retry=retry)
        processor.register_handler("echo", fail_once)
        await queue.enqueue(task("t"))
        async with processing(processor):
            await until(lambda: processor.statistics().done == 1)
        assert started_s[1] - started_s[0] == 50
        assert processor.statistics().slowed_retries == 1

    play(body)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_handler_that_never_returns_is_cut_off_and_its_slot_freed(
    stubborn: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        queue = MemoryQueue()
        never = asyncio.Event()

        async def hang(payload: Any) -> None:
            while True:
                try:
                    await never.wait()
                except asyncio.CancelledError:
                    if not stubborn or never.is_set():
                        raise
                else:
                    return

        processor = TaskProcessor(queue, concurrency=1, retry=RETRY)
        processor.register_handler("echo", hang, timeout_s=3.0)
        await queue.enqueue(task("t", max_retries=0))
        async with processing(processor):
            await until(lambda: processor.statistics().dead == 1)
            (letter,) = await queue.dead_letters()
            assert letter.reason == (
                "failed 1 times: TimeoutError: the handler of 'echo' did not return within 3 s"
            )
            assert processor.statistics().held == 0
        never.set()
        await asyncio.sleep(0.1)

    play(body)
    assert ("it is left to itself" in caplog.text) == stubborn


def test_a_handler_that_is_cancelled_from_within_has_failed() -> None:
    async def body() -> None:
        queue = MemoryQueue()

        async def cancel_itself(payload: Any) -> None:
            raise asyncio.CancelledError

        processor = TaskProcessor(queue, retry=RETRY)
        processor.register_handler("echo", cancel_itself)
        await queue.enqueue(task("t", max_retries=0))
        async with processing(processor):
            await until(lambda: processor.statistics().dead == 1)
        assert "cancelled from within" in (await queue.dead_letters())[0].reason

    play(body)


def test_at_most_concurrency_tasks_are_held() -> None:
    async def body() -> None:
        queue = MemoryQueue()
        at_once = [0]
        most = [0]

        async def work(payload: Any) -> None:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            await asyncio.sleep(1)
            at_once[0] -= 1
            now = await queue.statistics()
            assert now.held is not None
            assert now.held <= 4

        processor = TaskProcessor(queue, concurrency=4, retry=RETRY)
        processor.register_handler("echo", work)
        await queue.enqueue_many([task(f"t-{n}") for n in range(20)])
        async with processing(processor):
            await until(lambda: processor.statistics().done == 20)
        assert most == [4]
        assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.1)

    play(body)


def test_the_lease_is_renewed_while_a_long_call_runs() -> None:
    async def body() -> None:
        queue = MemoryQueue(lease_s=30)
        rival = queue.connect()
        runs = [0]

        async def long_call(payload: Any) -> None:
            runs[0] += 1
            await asyncio.sleep(35 * 60)

        processor = TaskProcessor(queue, timeout_s=3600)
        processor.register_handler("echo", long_call)
        await queue.enqueue(task("t"))
        async with processing(processor):
            await asyncio.sleep(1)
            assert await rival.dequeue(wait_s=30 * 60) is None
            await until(lambda: processor.statistics().done == 1)
        assert runs == [1]

    play(body)


class ForgetfulQueue(MemoryQueue):
    """Loses the lease of what it handed out, at the next attempt to renew it."""

    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        await super().release(task_id)
        return await super().extend(task_id, lease_s)


def test_a_run_whose_lease_was_lost_is_cancelled_and_the_task_runs_again() -> None:
    async def body() -> None:
        queue = ForgetfulQueue(lease_s=30)
        ended: list[str] = []

        async def work(payload: Any) -> None:
            try:
                await asyncio.sleep(15 if not ended else 5)
                ended.append("finished")
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        runs: list[TaskRun] = []
        processor = TaskProcessor(queue, on_done=runs.append)
        processor.register_handler("echo", work)
        await queue.enqueue(task("t"))
        async with processing(processor):
            await until(lambda: processor.statistics().done == 1)
        assert ended == ["cancelled", "finished"]
        assert [(run.outcome, run.runs) for run in runs] == [("lost", 1), ("done", 2)]
        assert processor.statistics().wasted_runs == 1

    play(body)


def test_a_task_that_comes_twice_takes_effect_once_even_at_the_same_time() -> None:
    async def body() -> None:
        queue = MemoryQueue()
        effects = MemoryEffects()
        calls = [0]

        async def charge(payload: Any) -> dict[str, int]:
            calls[0] += 1
            await asyncio.sleep(1)
            return {"charged": 5}

        processor = TaskProcessor(queue, effects=effects)
        processor.register_handler("echo", charge)
        await queue.enqueue_many([task(f"t-{n}", idempotency_key="order-7") for n in range(4)])
        async with processing(processor):
            await until(lambda: processor.statistics().duplicate == 3)
        await queue.enqueue(task("later", idempotency_key="order-7"))
        again = TaskProcessor(queue, effects=effects)
        again.register_handler("echo", charge)
        async with processing(again):
            await until(lambda: again.statistics().duplicate == 1)
        assert calls == [1]
        assert json.loads(effects.effect("order-7") or b"") == {"charged": 5}
        assert (await queue.statistics()).depth == 0

    play(body)


def test_a_drain_finishes_what_it_can_and_hands_back_the_rest_uncounted() -> None:
    async def body() -> None:
        queue = MemoryQueue()
        loop = asyncio.get_running_loop()

        async def work(payload: Any) -> None:
            await asyncio.sleep(100 if payload["name"] == "slow" else 5)

        processor = TaskProcessor(queue, concurrency=2, timeout_s=600)
        processor.register_handler("echo", work)
        await queue.enqueue_many([task("slow"), task("quick"), task("waiting")])
        running = asyncio.create_task(processor.process_queue())
        await asyncio.sleep(1)
        await processor.drain(limit_s=10)
        await running
        assert loop.time() == pytest.approx(11)
        counts = processor.statistics()
        assert (counts.done, counts.handed_back, counts.held) == (1, 1, 0)
        left = await queue.dequeue_many(10)
        assert {(t.task_id, t.retry_count) for t in left} == {("slow", 0), ("waiting", 0)}

    play(body)


def test_an_idle_processor_drains_at_once() -> None:
    async def body() -> None:
        processor = TaskProcessor(MemoryQueue())
        running = asyncio.create_task(processor.process_queue())
        await asyncio.sleep(1)
        await processor.drain()
        await running
        assert asyncio.get_running_loop().time() == 1

    play(body)


@pytest.mark.parametrize("turns", range(8))
def test_what_is_being_taken_when_a_drain_begins_is_handed_back(turns: int) -> None:
    async def body() -> None:
        queue = MemoryQueue()
        started: list[str] = []

        async def work(payload: Any) -> None:
            started.append(payload["name"])
            await asyncio.sleep(5)

        processor = TaskProcessor(queue)
        processor.register_handler("echo", work)
        running = asyncio.create_task(processor.process_queue())
        await asyncio.sleep(1)
        await queue.enqueue_many([task("a"), task("b")])
        for _ in range(turns):
            await asyncio.sleep(0)
        await processor.drain(0)
        before = list(started)
        await asyncio.sleep(0.05)
        assert started == before, "nothing starts after a drain"
        assert running.done()
        assert processor.statistics().held == 0
        assert {t.task_id for t in await queue.dequeue_many(10)} == {"a", "b"}

    play(body)


def test_a_drain_while_the_queue_is_away_does_not_wait_for_it() -> None:
    async def body() -> None:
        queue = OutageQueue()
        queue.away_until_s = 1000
        retry = RetrySpec(backoff_s=100, backoff_max_s=100)
        processor = TaskProcessor(queue, retry=retry, uniform=lambda *_: 1.0)
        running = asyncio.create_task(processor.process_queue())
        await asyncio.sleep(1)
        await processor.drain()
        await running
        assert asyncio.get_running_loop().time() == 1

    play(body)


class OutageQueue(MemoryQueue):
    """Away between two instants."""

    away_until_s = 0.0

    def _there(self) -> None:
        if asyncio.get_running_loop().time() < self.away_until_s:
            raise QueueUnavailable("connection refused")

    async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
        self._there()
        return await super().dequeue_many(max_tasks, wait_s)

    async def ack(self, task_id: str) -> bool:
        self._there()
        return await super().ack(task_id)

    async def ack_many(self, task_ids: Sequence[str]) -> list[bool]:
        self._there()
        return await super().ack_many(task_ids)

    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        self._there()
        return await super().extend(task_id, lease_s)

    async def nack(self, task_id: str, delay_s: float = 0.0, reason: str = "") -> Fate:
        self._there()
        return await super().nack(task_id, delay_s, reason)


def test_an_outage_of_the_queue_is_waited_for_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body() -> None:
        queue = OutageQueue(lease_s=20)
        done: list[str] = []

        async def work(payload: Any) -> str:
            done.append(payload["name"])
            await asyncio.sleep(10)
            return "effect"

        processor = TaskProcessor(queue, retry=RETRY)
        processor.register_handler("echo", work)
        await queue.enqueue(task("before"))
        async with processing(processor):
            await asyncio.sleep(5)
            queue.away_until_s = 60
            await queue.enqueue(task("after"))
            await until(lambda: processor.statistics().duplicate == 2)
        assert done == ["before", "after"], "the effects were kept, so nothing ran twice"
        now = await queue.statistics()
        assert (now.depth, now.held, now.dead) == (0, 0, 0)

    play(body)
    assert caplog.text.count("the queue is away") == 1
    assert caplog.text.count("the queue answers again") == 1


def test_an_error_of_the_queue_that_waiting_cannot_help_ends_the_processing() -> None:
    class Mismatch(MemoryQueue):
        async def dequeue_many(self, max_tasks: int, wait_s: float = 0.0) -> list[QueuedTask]:
            raise QueueMismatch("declared otherwise")

    async def body() -> None:
        with pytest.raises(QueueMismatch):
            await TaskProcessor(Mismatch()).process_queue()

    play(body)


class RefusingQueue(MemoryQueue):
    """Raises an error of `errors` for each call of that name, for as long as there are any."""

    def __init__(self, errors: dict[str, list[Exception]], **options: Any) -> None:
        super().__init__(**options)
        self._errors = errors

    def _refuse(self, call: str) -> None:
        if self._errors.get(call):
            raise self._errors[call].pop()

    async def ack(self, task_id: str) -> bool:
        self._refuse("ack")
        return await super().ack(task_id)

    async def extend(self, task_id: str, lease_s: float | None = None) -> bool:
        self._refuse("extend")
        return await super().extend(task_id, lease_s)


def test_leases_are_renewed_on_after_the_queue_refused_it_once() -> None:
    async def body() -> None:
        queue = RefusingQueue(
            {"extend": [AccessRefused("the password is being changed")]}, lease_s=3
        )
        runs: list[TaskRun] = []

        async def long_call(payload: Any) -> None:
            await asyncio.sleep(60)

        processor = TaskProcessor(queue, on_done=runs.append)
        processor.register_handler("echo", long_call)
        await queue.enqueue(task("t"))
        async with processing(processor):
            await until(lambda: bool(runs))
        assert [(run.outcome, run.runs) for run in runs] == [("done", 1)]

    play(body)


def test_an_error_that_nobody_foresaw_in_renewing_leases_ends_the_processing() -> None:
    async def body() -> None:
        queue = RefusingQueue({"extend": [RuntimeError("a bug")]}, lease_s=3)
        ended: list[str] = []

        async def long_call(payload: Any) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        processor = TaskProcessor(queue)
        processor.register_handler("echo", long_call)
        await queue.enqueue(task("t"))
        with pytest.raises(RuntimeError, match="a bug"):
            await processor.process_queue()
        assert asyncio.get_running_loop().time() == pytest.approx(1)
        assert ended == ["cancelled"]
        assert (await queue.statistics()).depth == 1, "it is handed back"

    play(body)


def test_a_task_whose_acknowledgement_is_refused_has_not_failed() -> None:
    async def body() -> None:
        queue = RefusingQueue({"ack": [AccessRefused("no permission")]}, lease_s=3)
        effects = MemoryEffects()
        runs: list[TaskRun] = []

        async def work(payload: Any) -> str:
            return "effect"

        processor = TaskProcessor(queue, effects=effects, on_done=runs.append)
        processor.register_handler("echo", work)
        await queue.enqueue(task("t", max_retries=0))
        async with processing(processor):
            await until(lambda: len(runs) == 2)
        assert [run.outcome for run in runs] == ["done", "duplicate"]
        now = await queue.statistics()
        assert (now.depth, now.held, now.dead) == (0, 0, 0)

    play(body)


class OutageEffects(MemoryEffects):
    async def begin(self, key: str) -> Begun:
        if asyncio.get_running_loop().time() < 20:
            raise EffectsUnavailable("connection refused")
        return await super().begin(key)

    async def finish(self, key: str, effect: bytes) -> bool:
        if asyncio.get_running_loop().time() < 60:
            raise EffectsUnavailable("connection refused")
        return await super().finish(key, effect)


def test_an_outage_of_the_effect_store_costs_neither_the_task_nor_a_second_call() -> None:
    async def body() -> None:
        queue = MemoryQueue(lease_s=5)
        calls = [0]

        async def work(payload: Any) -> None:
            calls[0] += 1

        processor = TaskProcessor(queue, effects=OutageEffects(), retry=RETRY)
        processor.register_handler("echo", work)
        await queue.enqueue(task("t"))
        async with processing(processor):
            await until(lambda: processor.statistics().done == 1)
        assert calls == [1]
        assert asyncio.get_running_loop().time() > 60

    play(body)


def test_the_wait_in_the_queue_is_told_by_the_queues_own_clock() -> None:
    async def body() -> None:
        queue = MemoryQueue()
        runs: list[TaskRun] = []

        async def work(payload: Any) -> None:
            await asyncio.sleep(2)

        processor = TaskProcessor(queue, on_done=runs.append)
        processor.register_handler("echo", work)
        await queue.enqueue(task("t"))
        await asyncio.sleep(7)
        async with processing(processor):
            await until(lambda: processor.statistics().done == 1)
        assert (runs[0].queue_wait_s, runs[0].run_s) == (7, 2)

    play(body)
