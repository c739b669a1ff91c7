"""Many pieces of work at once, with a bound, a rate, and every result accounted for."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import multiprocessing
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, TypeVar

from reference_impl.overload.rate_limiter import RateLimiter

__all__ = ["BatchFailed", "ConcurrencyManager", "completed_or_raise"]

T = TypeVar("T")
R = TypeVar("R")


class BatchFailed(ExceptionGroup[Exception]):
    """Some items of a batch failed; the others' results are not lost.

    Attributes:
        results: one entry an item, in order; None where the item failed.
        failures: the exception of each item that failed, by its index.
    """

    results: list[Any]
    failures: dict[int, Exception]

    def __new__(cls, results: list[Any], failures: dict[int, Exception]) -> BatchFailed:
        first_index, first = next(iter(failures.items()))
        group = super().__new__(
            cls,
            f"{len(failures)} of {len(results)} items failed (first: item {first_index}: {first}); "
            "the others' results are in .results",
            list(failures.values()),
        )
        group.results = results
        group.failures = failures
        return group

    def derive(self, excs: Sequence[Exception]) -> ExceptionGroup[Exception]:  # type: ignore[override]
        # A part of the group (`except*`, `split`) speaks of fewer items than the batch had.
        return ExceptionGroup(self.message, excs)


def completed_or_raise(outcomes: list[R | Exception], *, return_exceptions: bool) -> list[Any]:
    """The outcomes as they are if `return_exceptions`, or if none is an exception; else raises BatchFailed."""
    if return_exceptions:
        return outcomes
    failures = {i: o for i, o in enumerate(outcomes) if isinstance(o, Exception)}
    if failures:
        results = [None if isinstance(o, Exception) else o for o in outcomes]
        raise BatchFailed(results, failures)
    return outcomes


def content_digest(item: str | bytes) -> str:
    """blake2b of a text or of bytes, in hex: the work of `cpu_bound_with_threads` when no function is given."""
    return hashlib.blake2b(item.encode() if isinstance(item, str) else item).hexdigest()


async def _settle(item: object) -> object:
    """The handler when none is given: awaits what can be awaited, passes on what cannot."""
    return await item if inspect.isawaitable(item) else item


class ConcurrencyManager:
    """Ways to do much at once, each saying what it is good for."""

    async def rate_limited_processing(
        self,
        items: Iterable[T],
        rate_limit: int = 10,
        *,
        handler: Callable[[T], Awaitable[Any]] | None = None,
        rate_per_s: float | None = None,
        burst: float = 1.0,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Hand each item to `handler`; results in the order of the items.

        Args:
            items: taken one by one as work can start, so a generator is not read ahead.
            rate_limit: at most this many handlers at once.
            handler: coroutine function; without it, items that are awaitable are awaited and others passed on.
            rate_per_s: handlers started per second on the loop's clock (a true rate, however quickly they end);
                None: as fast as the bound allows.
            burst: how many may start at once after a pause of the rate.
            return_exceptions: put exceptions in the places of their results instead of raising.

        Raises:
            BatchFailed: after all items were handled, if any failed; it carries the results of the others.
            ValueError: a bound or rate that is not positive.
        """
        if rate_limit < 1:
            raise ValueError(f"rate_limit must be at least 1 (handlers at once), not {rate_limit}")
        limiter = None if rate_per_s is None else RateLimiter(rate_per_s, burst)
        work: Callable[[Any], Awaitable[Any]] = handler or _settle
        queue = enumerate(items)
        outcomes: dict[int, Any] = {}

        async def worker() -> None:
            for index, item in queue:
                if limiter is not None:
                    await limiter.acquire()
                try:
                    outcomes[index] = await work(item)
                except Exception as error:  # noqa: BLE001 - reported to the caller with the item's index
                    outcomes[index] = error

        bound = min(rate_limit, len(items)) if isinstance(items, Sequence) else rate_limit
        async with asyncio.TaskGroup() as group:
            for _ in range(bound):
                group.create_task(worker())
        ordered = [outcomes[index] for index in range(len(outcomes))]
        return completed_or_raise(ordered, return_exceptions=return_exceptions)

    def cpu_bound_with_threads(
        self,
        data: Iterable[Any],
        *,
        function: Callable[[Any], Any] = content_digest,
        max_workers: int | None = None,
    ) -> list[Any]:
        """`function` of each element on a pool of threads; results in order. Blocks the calling thread.

        Threads share one interpreter lock (GIL): pure Python does not get faster by them, only work that releases the
        lock does (hashing and compression of large buffers, NumPy, waiting for files). For pure Python use
        `cpu_bound_with_processes`. From a coroutine call either through `Compute.offload`, which keeps the loop free.

        Raises the first exception of `function`, in the order of the data.
        """
        with ThreadPoolExecutor(max_workers, thread_name_prefix="cpu-bound") as pool:
            return list(pool.map(function, data))

    def cpu_bound_with_processes(
        self,
        data: Iterable[Any],
        *,
        function: Callable[[Any], Any] = content_digest,
        max_workers: int | None = None,
        chunk_size: int = 1,
    ) -> list[Any]:
        """`function` of each element on a pool of processes; results in order. Blocks the calling thread.

        Each process has its own interpreter lock, so pure Python runs on as many cores as there are workers. The price:
        `function`, arguments and results are pickled (raise `chunk_size` for many small ones), and starting a process
        takes some 50 ms. Processes are spawned, not forked: forking a process that runs threads or an event loop can
        deadlock the child.

        Raises the first exception of `function`, in the order of the data.
        """
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers, mp_context=context) as pool:
            return list(pool.map(function, data, chunksize=chunk_size))
