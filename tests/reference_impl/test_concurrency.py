"""ConcurrencyManager: bounds and rates in virtual time, pools of threads and processes for real."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator

import pytest

from reference_impl.concurrency import BatchFailed, ConcurrencyManager
from simulation.kernel import run

manager = ConcurrencyManager()


class Handler:
    """Doubles numbers, a second each; remembers when it started and how many it was at once."""

    def __init__(self, *, failing: int | None = None) -> None:
        self._failing = failing
        self.started_s: list[float] = []
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self, item: int) -> int:
        self.started_s.append(asyncio.get_running_loop().time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(1.0)
        finally:
            self.at_once -= 1
        if item == self._failing:
            raise KeyError(item)
        return 2 * item


def test_results_come_in_the_order_of_the_items_within_the_bound() -> None:
    handler = Handler()
    results = run(
        manager.rate_limited_processing(range(25), rate_limit=10, handler=handler), until=3.0
    )
    assert results == [2 * i for i in range(25)]
    assert handler.most_at_once == 10


def test_order_is_kept_when_later_items_are_quicker() -> None:
    async def handler(item: int) -> int:
        await asyncio.sleep(10.0 - item)
        return item

    assert run(manager.rate_limited_processing(range(10), handler=handler)) == list(range(10))


def test_a_rate_is_kept_however_quickly_handlers_end() -> None:
    handler = Handler()
    run(manager.rate_limited_processing(range(20), 100, handler=handler, rate_per_s=4.0))
    assert handler.started_s == pytest.approx([i / 4.0 for i in range(20)])


def test_rate_and_bound_hold_together() -> None:
    handler = Handler()
    run(manager.rate_limited_processing(range(12), 2, handler=handler, rate_per_s=4.0))
    # Two at once, a second each, is slower than four a second.
    assert handler.most_at_once == 2
    assert handler.started_s[-1] == pytest.approx(5.25)


def test_a_burst_starts_at_once_after_a_pause() -> None:
    handler = Handler()
    run(manager.rate_limited_processing(range(5), handler=handler, rate_per_s=1.0, burst=3.0))
    assert handler.started_s == pytest.approx([0.0, 0.0, 0.0, 1.0, 2.0])


def test_one_failure_does_not_lose_the_others_results() -> None:
    with pytest.raises(BatchFailed, match=r"1 of 5 items failed \(first: item 3") as caught:
        run(manager.rate_limited_processing(range(5), handler=Handler(failing=3)))
    assert caught.value.results == [0, 2, 4, None, 8]
    assert list(caught.value.failures) == [3]


def test_failures_can_be_taken_apart_like_any_group() -> None:
    caught: list[BaseException] = []
    try:
        run(manager.rate_limited_processing(range(5), handler=Handler(failing=3)))
    except* KeyError as group:
        caught.extend(group.exceptions)
    assert [type(error) for error in caught] == [KeyError]


def test_failures_can_take_the_places_of_their_results() -> None:
    results = run(
        manager.rate_limited_processing(
            range(3), handler=Handler(failing=1), return_exceptions=True
        )
    )
    assert (results[0], results[2]) == (0, 4)
    assert isinstance(results[1], KeyError)


def test_a_generator_is_not_read_ahead_of_the_work() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            read.append(i)
            yield i

    async def main() -> int:
        task = asyncio.create_task(manager.rate_limited_processing(items(), 5, handler=Handler()))
        await asyncio.sleep(1.5)
        task.cancel()
        await asyncio.wait([task])
        return len(read)

    assert run(main()) == 10


def test_without_a_handler_awaitables_are_awaited_and_values_passed_on() -> None:
    async def main() -> list[object]:
        return await manager.rate_limited_processing([asyncio.sleep(1.0, "done"), 7])

    assert run(main()) == ["done", 7]


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="rate_limit must be at least 1"):
        run(manager.rate_limited_processing([1], 0))


def test_threads_keep_the_order_and_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=10)

    def meet(item: int) -> int:
        meeting.wait()
        return item * item

    results = manager.cpu_bound_with_threads([1, 2, 3], function=meet, max_workers=3)
    assert results == [1, 4, 9]


def test_without_a_function_threads_digest_what_they_are_given() -> None:
    digests = manager.cpu_bound_with_threads(["a", b"b"])
    assert digests == [hashlib.blake2b(text).hexdigest() for text in (b"a", b"b")]


def worker_process(_: object) -> int:
    return os.getpid()


def refuse(item: int) -> int:
    if item == 2:
        raise ValueError(f"{item} is refused")
    return item


def test_processes_are_others_than_this_one() -> None:
    assert os.getpid() not in manager.cpu_bound_with_processes(
        [1, 2], function=worker_process, max_workers=1
    )


def test_an_exception_in_a_worker_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="2 is refused"):
        manager.cpu_bound_with_threads([1, 2, 3], function=refuse)
