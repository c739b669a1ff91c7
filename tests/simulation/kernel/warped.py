"""asyncio's own selector loop with a clock that jumps: the reference for the order of happening.

Slow, and without any of the kernel's promises, but each turn is asyncio's own `_run_once`.
"""

import asyncio
import heapq
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from itertools import count
from typing import Any, TypeVar, TypeVarTuple

from simulation.kernel.tasks import SimulationTask

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class StableTimer(asyncio.TimerHandle):
    """asyncio's heap does not keep the order of equal times; this one's timers do."""

    __slots__ = ("serial",)

    serial: int
    _scheduled: bool

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, StableTimer)
        return (self.when(), self.serial) < (other.when(), other.serial)


class WarpedLoop(asyncio.SelectorEventLoop):
    """A selector loop whose selector moves the clock instead of waiting."""

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self.now = 0.0
        self._clock_resolution = 1e-9  # 0 hangs
        self._serials = count(1)
        selector = self._selector  # type: ignore[attr-defined]
        look = selector.select

        def select(timeout: float | None) -> object:
            if timeout is None:
                raise RuntimeError("nothing is left to happen")
            self.now += timeout
            return look(0)

        selector.select = select
        factory: Any = self._make_task
        self.set_task_factory(factory)

    def time(self) -> float:
        return self.now

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = StableTimer(when, callback, args, self, context)
        timer.serial = next(self._serials)
        timer._scheduled = True
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        return timer

    def _make_task(
        self, _: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], **options: Any
    ) -> "asyncio.Task[T]":
        task: Any = SimulationTask.__new__(SimulationTask)
        task.serial = next(self._serials)
        task.__init__(coroutine, loop=self, **options)
        return task  # type: ignore[no-any-return]


def run_warped(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run on a WarpedLoop."""
    with asyncio.Runner(loop_factory=WarpedLoop) as runner:
        return runner.run(main)
