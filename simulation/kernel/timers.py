"""The entries of the two queues: timers in SimPy's heap, handles among the ready callbacks.

A timer is one object in two roles. SimPy sees an event in its queue, asyncio a `TimerHandle`; two
objects, one pointing to the other, would cost an allocation and a call for every sleep.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from simpy.events import Event

if TYPE_CHECKING:
    from simpy.core import Environment

    from simulation.kernel.loop import SimulationLoop


# The callback of asyncio.sleep, which the loop knows and runs without its context: it only sets a
# future's result, and the future's own callbacks bring their contexts along.
set_result_unless_cancelled: Any = asyncio.futures._set_result_unless_cancelled  # type: ignore[attr-defined] # noqa: SLF001


class Timer(Event, asyncio.TimerHandle):
    """A callback due at an instant. Made by `SimulationLoop.call_at`, which fills its slots.

    Its state is in two of them: without a callback it is not in the queue any more (due, or
    cancelled), without arguments it is cancelled.
    """

    __slots__ = ()

    # Neither base class's __init__ runs: setting the slots that count one by one is faster.
    _loop: "SimulationLoop"
    _callback: Callable[..., object] | None
    _args: Any
    _context: Context | None  # None: asyncio.sleep's, see set_result_unless_cancelled
    _when: float

    # As a simpy.Timeout, a timer is triggered from the start and has no value.
    _ok = True
    _value = None

    # TimerHandle compares by content, and so do lists of events: here a timer is itself.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    if not TYPE_CHECKING:

        @property
        def env(self) -> "Environment":
            return self._loop.env

        @property
        def callbacks(self) -> list[Callable[[Event], None]] | None:
            """What SimPy runs when the event happens; None once it has, or was cancelled."""
            if self._callback is None:
                return None
            if not isinstance(self._callback, _WithWaiters):
                self._callback = _WithWaiters(self, self._callback)
            return self._callback.waiters

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else "due" if self._callback is None else "waiting"
        return f"<Timer {state} when={self._when:g} {self._callback or ''}>"

    def cancel(self) -> None:
        """Give up the callback and all that it holds, at once."""
        self._args = self._context = None
        if self._callback is not None:
            self._callback = None
            self._loop._timer_was_cancelled()  # noqa: SLF001

    def cancelled(self) -> bool:
        """Whether cancel() was called."""
        return self._args is None

    def _fire(self, callback: Callable[..., object]) -> None:
        """Run the callback, unless an earlier one of this turn cancelled the timer."""
        if self._args is not None:
            callback(*self._args)


def is_dead(event: Any) -> bool:
    """Whether an entry of SimPy's queue was cancelled: a timer, or a future of `until`."""
    if type(event) is Timer:
        return event._callback is None  # noqa: SLF001
    return type(event) is asyncio.Future and event.done()


class _WithWaiters:
    """A timer's callback with the SimPy processes that wait for the timer."""

    __slots__ = ("callback", "timer", "waiters")

    def __init__(self, timer: Timer, callback: Callable[..., object]) -> None:
        self.timer = timer
        self.callback = callback
        self.waiters: list[Callable[[Event], None]] = []

    def __call__(self, *args: object) -> None:
        self.callback(*args)
        for waiter in self.waiters:
            waiter(self.timer)


class ReadyHandle(asyncio.Handle):
    """A callback that is ready. Made by `SimulationLoop.call_soon`, which fills its slots."""

    __slots__ = ()

    _callback: Callable[..., object] | None
    _args: Any
    _context: Context
    _cancelled: bool

    def __repr__(self) -> str:
        return f"<ReadyHandle {'cancelled' if self._cancelled else self._callback}>"

    def cancel(self) -> None:
        """Do not run the callback."""
        self._cancelled = True
        self._callback = self._args = None

    def _fire(self) -> None:
        if self._callback is not None:
            self._callback(*self._args)


class Milestone(Event):
    """A note of the loop to itself in SimPy's queue: reaching it does not move the clock."""

    __slots__ = ("reached",)

    def __init__(self, reached: Callable[[], object]) -> None:
        self.reached = reached
