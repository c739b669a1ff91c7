"""The turns of a loop: the part whose speed is the simulator's speed.

docs/decisions/0003-kernel-speed.md tells what each unusual line here saves.
"""

# ruff: noqa: SLF001 - works on the slots of timers and on SimPy's own queue

import asyncio
from collections.abc import Iterator
from heapq import heappop
from itertools import repeat
from typing import TYPE_CHECKING, Any, NoReturn

from simpy.events import Event

from simulation.kernel.errors import Spinning, Stopped
from simulation.kernel.timers import Milestone, Timer, set_result_unless_cancelled

if TYPE_CHECKING:
    from simulation.kernel.loop import SimulationLoop


def take_turns(loop: "SimulationLoop") -> NoReturn:  # noqa: C901 - a call per callback costs 5%
    """Take turns (see `simulation.kernel.loop` for their order) until `Stopped` is raised."""
    env, queue, ready = loop.env, loop._queue, loop._ready
    popleft, append = ready.popleft, ready.append
    now = env._now
    limit = loop.max_callbacks_per_instant
    here = before = 0  # callbacks and SimPy events: at this instant, and before it
    check_at = loop.bounds.check(0, now)
    run: Any = None
    args: Any = ()
    turn: Iterator[None] = iter(())
    future_type = asyncio.Future
    while True:
        try:
            for _ in turn:  # the rest of a turn that a callback's exception interrupted
                run, args = popleft()
                run(*args)
            while True:
                while ready and queue[0][0] > now:
                    here += len(ready)
                    if here > limit:
                        _spinning(loop)
                    if len(ready) == 1:
                        run, args = popleft()
                        run(*args)
                    else:
                        turn = repeat(None, len(ready))
                        for _ in turn:
                            run, args = popleft()
                            run(*args)
                when, _, _, event = heappop(queue)
                kind = type(event)
                if kind is future_type:
                    if event.done():  # cancelled: must not move the clock
                        continue
                    if when > now:
                        now = env._now = when
                        before += here
                        here = 1
                        if before >= check_at:
                            check_at = loop.bounds.check(before, now)
                        if queue[0][0] > when:  # alone at its instant: no need to queue
                            event.set_result(None)
                            if len(ready) == 1:
                                run, args = popleft()
                                run(*args)
                            continue
                    append((set_result_unless_cancelled, (event, None)))
                elif kind is Timer:
                    callback = event._callback
                    if callback is None:  # cancelled: must not move the clock
                        loop._dead -= 1
                        continue
                    event._callback = None
                    if when > now:
                        now = env._now = when
                        before += here
                        here = 1
                        if before >= check_at:
                            check_at = loop.bounds.check(before, now)
                        if queue[0][0] > when:  # alone at its instant: no need to queue
                            if callback is set_result_unless_cancelled:
                                future, result = event._args
                                try:
                                    future.set_result(result)
                                except asyncio.InvalidStateError:
                                    if not future.cancelled():
                                        args = (callback,)
                                        raise
                                if len(ready) == 1:
                                    run, args = popleft()
                                    run(*args)
                            else:
                                run, args = event._context.run, (callback, *event._args)
                                run(*args)
                            continue
                    if event._context is None:
                        append((event._fire, (callback,)))
                    else:
                        append((event._context.run, (event._fire, callback)))
                elif kind is Milestone:
                    event.reached()
                else:
                    if when > now:
                        now = env._now = when
                        before += here
                        here = 0
                        if before >= check_at:
                            check_at = loop.bounds.check(before, now)
                    here += 1
                    if here > limit:
                        _spinning(loop)
                    _happen(event)
        except (Stopped, SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - handed to the exception handler
            loop.call_exception_handler(
                {"message": f"exception in callback {args[0]!r}", "exception": error}
            )
            run, args = None, ()


def _happen(event: Event) -> None:
    """Let a SimPy event happen, as Environment.step does."""
    callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
    try:
        for callback in callbacks:
            callback(event)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - ends the run, as in SimPy
        raise Stopped(error) from None
    if not event._ok and not event.defused:
        assert isinstance(event._value, BaseException)
        raise Stopped(event._value)


def _spinning(loop: "SimulationLoop") -> NoReturn:
    ready = [repr(args[0]) for _, args in list(loop._ready)[:3]]
    raise Stopped(
        Spinning(
            f"more than {loop.max_callbacks_per_instant} callbacks at {loop.time():g} s: something "
            "goes on without letting time pass" + "".join(f"\n  ready: {text}" for text in ready)
        )
    )
