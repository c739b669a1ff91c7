"""An asyncio event loop whose clock and timers are a SimPy environment.

Order within one instant, which is asyncio's order wherever asyncio defines one. The loop takes
turns. In a turn,

1. what is due is taken from SimPy's queue in the order of (time, priority, serial): a SimPy event
   happens at once, as `Environment.step` would have it, and what it schedules for this instant
   takes its place in the same order; a timer becomes ready;
2. the callbacks that are ready run, each once, in the order in which they became ready. What they
   make ready waits for the next turn.

The clock moves when nothing is due or ready. So all timers of one instant become ready before any
callback runs, a time-out wins against a result of the same instant, and SimPy's part of the model
is complete for the instant before asyncio's callbacks see it.
"""

# ruff: noqa: SLF001 - the loop fills its handles' slots and works on SimPy's queue itself

import asyncio
import math
import sys
import threading
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial
from heapq import heapify, heappush
from itertools import count
from typing import Any, NoReturn, TypeVar, TypeVarTuple, cast

from simpy.events import NORMAL, Event, Process

from simulation.kernel.bounds import Bounds
from simulation.kernel.calls_from_c import fast_call_soon
from simulation.kernel.endings import Endings
from simulation.kernel.environment import LoopEnvironment
from simulation.kernel.errors import (
    KernelError,
    NotInVirtualTime,
    Stopped,
    UnhandledErrors,
)
from simulation.kernel.generators import AsyncGenerators
from simulation.kernel.refusals import NoOutsideWorld
from simulation.kernel.tasks import BACKGROUND_PREFIX, UNNAMED, SimulationTask, in_background
from simulation.kernel.timers import (
    Milestone,
    ReadyHandle,
    Timer,
    is_dead,
    set_result_unless_cancelled,
)
from simulation.kernel.turns import take_turns

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_new_timer: Any = Timer.__new__
_new_handle: Any = ReadyHandle.__new__
_new_task: Any = SimulationTask.__new__

_COMPACT_FROM = 64
_FALSE = "".isdecimal  # a builtin that returns False, twice as fast to call as a method of ours


class SimulationLoop(NoOutsideWorld):
    """An event loop in virtual time, for unmodified asyncio code.

    Use `simulation.kernel.run`, unless something else (`asyncio.Runner`, a test framework) must
    own the loop.

    Args:
        max_callbacks_per_instant: callbacks and SimPy events at one instant, beyond which the
            run ends with `Spinning`.
        bounds: of events, wall-clock time and virtual time, for the whole run.
        eager: start tasks in `create_task` (Python 3.12 and later).
        background_patience_s: virtual seconds for which background tasks alone keep a run going
            while the main coroutine waits. After at most twice as long it is a deadlock.

    Attributes:
        env: the SimPy environment. Its processes and resources run beside the tasks.
    """

    def __init__(
        self,
        *,
        max_callbacks_per_instant: int = 1_000_000,
        bounds: Bounds | None = None,
        eager: bool = False,
        background_patience_s: float = 3600.0,
    ) -> None:
        if eager and sys.version_info < (3, 12):
            raise ValueError("eager tasks need Python 3.12 or later")
        self.env = LoopEnvironment(0.0)
        self._queue = cast("list[Any]", self.env._queue)
        self._next_id = self.env._eid.__next__
        self._next_serial = count(1).__next__
        self._ready: deque[Any] = deque()
        self._dead = 0  # cancelled timers in the queue
        self._eager = eager
        self._task_factory: Any = None
        self._exception_handler: Callable[..., object] | None = None
        self.generators = AsyncGenerators(self)
        self.max_callbacks_per_instant = max_callbacks_per_instant
        self.bounds = Bounds() if bounds is None else bounds
        self._thread: int | None = None
        self._stopping = False
        self._cleaning_up = False
        self._closed = False
        self._debug = False
        self.failures: list[dict[str, Any]] = []
        """Exception-handler contexts of the errors that nobody retrieved."""
        # Faster twins of the methods, which stand for them in every instance.
        self._shadow("create_future", partial(asyncio.Future, loop=self))
        self._shadow("call_soon", fast_call_soon(self._ready.append, self.call_soon))
        self._shadow("until", self._fast_until())
        self._shadow("get_debug", _FALSE)  # asked for every future
        self._endings = Endings(self, background_patience_s)

    def _shadow(self, method: str, function: Callable[..., Any]) -> None:
        # Not through vars(self), which would slow down every access to the loop's attributes.
        object.__setattr__(self, method, function)

    # ---------------------------------------------------------------- time and callbacks

    def time(self) -> float:
        """Virtual time in seconds: the environment's `now`."""
        return self.env._now

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Run the callback in the next turn of this instant.

        The handle of a builtin (`some_list.append`) called with an explicit context, which only
        asyncio's C code does, cannot be cancelled.
        """
        if context is None:
            context = copy_context()
        handle: ReadyHandle = _new_handle(ReadyHandle)
        handle._callback = callback
        handle._args = args
        handle._context = context
        handle._cancelled = False
        self._ready.append((context.run, (handle._fire,)))
        return handle

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """As call_soon; another thread is refused, for its timing is not part of the model."""
        if self._thread is not None and self._thread != threading.get_ident():
            raise NotInVirtualTime("call_soon_threadsafe")
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run the callback after a delay in seconds."""
        timer: Timer = _new_timer(Timer)
        timer._when = when = self.env._now + delay
        timer._callback = callback
        timer._args = args
        timer._loop = self
        if context is None and callback is not set_result_unless_cancelled:
            context = copy_context()
        timer._context = context
        if when != when:  # faster than math.isnan
            raise ValueError("a timer must be due at an instant, not at nan")
        heappush(self._queue, (when, NORMAL, self._next_id(), timer))
        return timer

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run the callback at an instant; at once if it is past, never if it is infinite."""
        if math.isnan(when):
            raise ValueError("a timer must be due at an instant, not at nan")
        timer: Timer = _new_timer(Timer)
        timer._when = when
        timer._callback = callback
        timer._args = args
        timer._loop = self
        timer._context = copy_context() if context is None else context
        heappush(self._queue, (when, NORMAL, self._next_id(), timer))
        return timer

    def until(self, when: float) -> "asyncio.Future[None]":
        """A future that is done at an instant, at once if it is past: `await loop.until(when)`.

        What `asyncio.sleep` does, at two thirds of its cost: the future itself waits in the queue,
        so there is neither a timer nor a coroutine. To give it up, cancel it, as a task that awaits
        it does when it is cancelled itself; its entry stays in the queue until it is due, or until
        cancelled timers are dropped. So it is for waits that are seldom given up.
        """
        return self._fast_until()(when)

    def _fast_until(self) -> Callable[[float], "asyncio.Future[None]"]:
        """`until` as a closure, which looks nothing up: models call it more often than anything else."""
        queue, next_id, create_future = self._queue, self._next_id, self.create_future

        def until(when: float) -> "asyncio.Future[None]":
            future: asyncio.Future[None] = create_future()
            if when != when:  # faster than math.isnan
                raise ValueError("a future must be due at an instant, not at nan")
            heappush(queue, (when, NORMAL, next_id(), future))
            return future

        return until

    def _timer_was_cancelled(self) -> None:
        """Note a dead entry of the queue, and drop the dead once they are the majority."""
        self._dead += 1
        queue = self._queue
        if self._dead > _COMPACT_FROM and 2 * self._dead > len(queue):
            queue[:] = [entry for entry in queue if not is_dead(entry[3])]
            heapify(queue)
            self._dead = 0

    # ---------------------------------------------------------------- tasks and futures

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop. Each instance replaces this by a partial: see __init__."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        eager_start: bool | None = None,
    ) -> asyncio.Task[T]:
        """Start a task. A name that begins with "background:" marks a background task."""
        serial = self._next_serial()
        if name is None:
            name = UNNAMED
        elif name.startswith(BACKGROUND_PREFIX):
            context = copy_context() if context is None else context
            self._note_background(context)
        if self._task_factory is not None:
            options: dict[str, Any] = {} if context is None else {"context": context}
            if eager_start is not None:
                options["eager_start"] = eager_start
            task: asyncio.Task[T] = self._task_factory(self, coro, **options)
            task.set_name(f"Task-{serial}" if name is UNNAMED else name)
            return task
        simulated: Any = _new_task(SimulationTask)
        simulated.serial = serial  # before __init__, which puts the task into a set
        if eager_start or (self._eager and eager_start is None):
            simulated.__init__(coro, loop=self, name=name, context=context, eager_start=True)
        else:
            simulated.__init__(coro, loop=self, name=name, context=context)
        return simulated  # type: ignore[no-any-return]

    def process(self, generator: Generator[Event, Any, Any]) -> Process:
        """Start a SimPy process beside the tasks; the same as `env.process(generator)`."""
        return self.env.process(generator)

    def set_task_factory(self, factory: Any) -> None:
        """Have a callable (loop, coroutine, **options) make the tasks.

        asyncio's own tasks hash by address: with a factory that makes them, the order in which a
        task group cancels its tasks is no longer a function of the program.
        """
        self._task_factory = factory

    def get_task_factory(self) -> Any:
        """What set_task_factory was given."""
        return self._task_factory

    def _mark_background(self, task: SimulationTask) -> None:
        """Mark the context of a task that was just made, through its first step."""
        for run, args in reversed(self._ready):
            if getattr(args[0], "__self__", None) is task:
                self._note_background(run.__self__)
                return

    def _note_background(self, context: Context) -> None:
        context.run(in_background.set, True)
        self._endings.watch_background()

    # ---------------------------------------------------------------- running

    def run_forever(self) -> None:
        """Run until stop(); raise Deadlock when nothing is left to happen."""
        self._check_closed()
        if self._thread is not None:
            raise RuntimeError("this event loop is already running")
        outer = events._get_running_loop()
        if isinstance(outer, SimulationLoop):
            raise RuntimeError("virtual time cannot run inside virtual time: await the coroutine")
        hooks = sys.get_asyncgen_hooks()
        self._thread = threading.get_ident()
        # A loop of real time may be running (a notebook's): it stands still meanwhile.
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(
            firstiter=self.generators.started, finalizer=self.generators.abandoned
        )
        error: BaseException | None = None
        try:
            take_turns(self)
        except Stopped as stopped:
            error = stopped.error
        finally:
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(outer)
            self._thread = None
            self._stopping = False
        # Raised here, outside of the handler: it must not hold the turns' frame, and with it tasks.
        if error is not None:
            raise error

    def run_until_complete(self, future: Any) -> Any:
        """Run until a future is done, or a coroutine has ended; return its result."""
        self._check_closed()
        is_new = not asyncio.isfuture(future)
        future = asyncio.ensure_future(future, loop=self)
        if is_new:
            future._log_destroy_pending = False  # its error, if any, tells more
        future.add_done_callback(self._stop_at)
        try:
            self.run_forever()
        except BaseException as error:
            if is_new and future.done() and not future.cancelled() and future.exception():
                error.add_note(f"and the main coroutine had just raised {future.exception()!r}")
            raise
        finally:
            future.remove_done_callback(self._stop_at)
        if not future.done():
            if self.failures:
                raise UnhandledErrors(self.failures)
            raise KernelError("the loop was stopped before the future was done")
        return future.result()

    def _stop_at(self, _: "asyncio.Future[Any]") -> None:
        self.stop()

    def stop(self) -> None:
        """Leave run_forever at the end of this turn."""
        if not self._stopping:
            self._stopping = True
            self.note(-math.inf, self._stop_reached)

    def _stop_reached(self) -> None:
        if self._stopping:  # else a leftover of a run that an error ended
            raise Stopped

    # ---------------------------------------------------------------- what ends a run

    def start_cleaning_up(self) -> None:
        """From here on the run only cleans up: its bounds are lifted, and errors do not stop it."""
        self._cleaning_up = True
        self.bounds.replace_for_clean_up(self.max_callbacks_per_instant)

    def note(self, when: float, reached: Callable[[], object]) -> None:
        # Priority -1: before anything else of its instant, so that nothing is ready meanwhile.
        heappush(self._queue, (when, -1, self._next_id(), Milestone(reached)))

    # ---------------------------------------------------------------- errors

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note an error that nobody retrieved: it fails the run, unless a handler is set."""
        if self._exception_handler is not None:
            self._exception_handler(self, context)
            return
        self.default_exception_handler(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Note the error among `failures` and stop the run."""
        self.failures.append(context)
        if self.is_running() and not self._cleaning_up:
            self.stop()

    def set_exception_handler(self, handler: Any) -> None:
        """Hand errors that nobody retrieved to a callable (loop, context) instead."""
        self._exception_handler = handler

    def get_exception_handler(self) -> Any:
        """What set_exception_handler was given."""
        return self._exception_handler

    async def shutdown_asyncgens(self) -> None:
        """Close the async generators that are still open, oldest first."""
        await self.generators.close_all()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing: there is no executor."""

    # ---------------------------------------------------------------- state

    def is_running(self) -> bool:
        """Whether the loop takes turns."""
        return self._thread is not None

    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def close(self) -> None:
        """Drop what is queued. Callbacks and timers raise RuntimeError from now on."""
        if self.is_running():
            raise RuntimeError("cannot close a running event loop")
        self._closed = True
        self._ready.clear()
        self._queue.clear()
        # Shadowing the methods spares every call_soon a check.
        for method in ("call_soon", "call_at", "call_later", "until"):
            self._shadow(method, _refuse_closed)

    def _check_closed(self) -> None:
        if self._closed:
            _refuse_closed()

    def get_debug(self) -> bool:
        """Whether set_debug(True) was called; the loop itself has no debug mode."""
        return self._debug

    def set_debug(self, enabled: bool) -> None:
        """Have coroutines remember where they were created."""
        self._debug = enabled
        self._shadow("get_debug", partial(bool, enabled))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self.is_running() else "idle"
        return f"<SimulationLoop {state} at {self.time():g} s>"


def _refuse_closed(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("Event loop is closed")


def running_loop() -> SimulationLoop:
    """The loop in virtual time that runs this code. Raises KernelError outside of virtual time."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, SimulationLoop):
        raise KernelError(f"{loop!r} is no loop in virtual time: use simulation.kernel.run")
    return loop
