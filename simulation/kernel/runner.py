"""`run`: asyncio.run in virtual time."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from simulation.kernel.bounds import Bounds
from simulation.kernel.errors import UnhandledErrors, describe_context
from simulation.kernel.loop import SimulationLoop
from simulation.kernel.waiting import pending_tasks

T = TypeVar("T")

MAX_FROZEN_BY_PYTHON = 1000
YOUNG_OBJECTS = 20_000


def run(
    main: Coroutine[Any, Any, T],
    *,
    until: float | None = None,
    max_callbacks_per_instant: int = 1_000_000,
    max_events: int | None = None,
    wall_clock_limit_s: float | None = None,
    clock: Callable[[], float] | None = None,
    eager: bool = False,
    background_patience_s: float = 3600.0,
) -> T:
    """Run a coroutine in virtual time, from 0 s on, and return its result.

    As asyncio.run, it cancels the tasks that are left, closes async generators, and closes the
    loop. Unlike asyncio.run it does not merely log what nobody retrieved: it raises.

    Args:
        main: the coroutine. `asyncio.get_running_loop()` is a `SimulationLoop` inside.
        until: the instant in virtual seconds past which the clock must not move; what is due at
            that instant still happens. A bound, not a horizon: a run that is not done is an error.
        max_callbacks_per_instant: callbacks and SimPy events at one instant before `Spinning`.
        max_events: callbacks and SimPy events in all; looked at when the clock moves.
        wall_clock_limit_s: real seconds, by `clock`, which the caller hands in.
        clock: for example time.monotonic.
        eager: start tasks eagerly (Python 3.12 and later).
        background_patience_s: virtual seconds for which background tasks alone keep a run going.

    Raises:
        Exception: whatever main raises.
        Deadlock: nothing is left to happen (background tasks aside), and main waits.
        LimitExceeded: one of the bounds was reached.
        Spinning: callbacks went on and on at one instant.
        UnhandledErrors: an exception was never retrieved, or an async generator never closed.
    """
    bounds = Bounds(max_events, wall_clock_limit_s, clock, until)
    with _older_objects_left_alone(), _young_objects_left_alone_longer():
        loop = SimulationLoop(
            max_callbacks_per_instant=max_callbacks_per_instant,
            bounds=bounds,
            eager=eager,
            background_patience_s=background_patience_s,
        )
        try:
            result: T = loop.run_until_complete(main)
        except BaseException as error:
            _close_after(error, loop)
            raise
        _clean_up(loop)
    if loop.failures:
        raise UnhandledErrors(loop.failures)
    return result


@contextmanager
def _older_objects_left_alone() -> Iterator[None]:
    """Keep the garbage collector from looking, time and again, at what is older than the run.

    With the usual libraries imported, the collection at a run's end takes about 0.1 s otherwise,
    more than most tests. If somebody else has frozen objects, nothing is done: they could not be
    told apart afterwards. (CPython 3.12 itself freezes a few hundred at its start.)
    """
    if gc.get_freeze_count() > MAX_FROZEN_BY_PYTHON:
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _young_objects_left_alone_longer() -> Iterator[None]:
    """Let more objects come together before the collector looks through the youngest.

    A thousand requests in flight are tens of thousands of frames and futures, which reference
    counting frees on its own; looking at them after every 700 allocations cost 4% of a run.
    """
    youngest, *older = gc.get_threshold()
    if youngest:  # else the caller has switched it off
        gc.set_threshold(max(youngest, YOUNG_OBJECTS), *older)
    try:
        yield
    finally:
        gc.set_threshold(youngest, *older)


def _close_after(error: BaseException, loop: SimulationLoop) -> None:
    """Clean up after a run that failed; what goes wrong meanwhile is noted on its error."""
    known = len(loop.failures)
    try:
        _clean_up(loop)
    except Exception as second:  # noqa: BLE001 - the first error is the one to raise
        error.add_note(f"and then, while the run was cleaned up: {second}")
    for context in loop.failures[known:]:
        error.add_note(f"and besides: {describe_context(context)}")


def _clean_up(loop: SimulationLoop) -> None:
    loop.start_cleaning_up()
    try:
        tasks = [task for task in pending_tasks(loop) if task not in loop.generators.closing]
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                loop.call_exception_handler(
                    {"message": "a task failed when cancelled", "exception": error, "task": task}
                )
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
        # asyncio reports an exception that nobody retrieved when its task is destroyed.
        gc.collect()
