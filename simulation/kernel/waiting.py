"""Who waits, and where: the text of a deadlock, and the proof that only background tasks run."""

import asyncio
import os
from collections.abc import Iterable, Mapping
from types import CodeType, FrameType
from typing import Any

from simulation.kernel.tasks import BACKGROUND_PREFIX, in_background
from simulation.kernel.timers import Milestone, Timer, is_dead

_HIDDEN_FOLDERS = (
    os.path.dirname(asyncio.__file__) + os.sep,  # noqa: PTH120 - compared with co_filename
    os.path.dirname(__file__) + os.sep,  # noqa: PTH120
)

MAX_LISTED = 50
"""Waiting tasks that an error's text lists; thousands of requests may wait for one slot."""


def pending_tasks(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """The loop's unfinished tasks, oldest first."""
    return sorted(asyncio.all_tasks(loop), key=lambda task: getattr(task, "serial", -1))


def describe_waiting(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """One line per task: its name, the line of the program where it waits, and for what."""
    lines = [f"  {task.get_name()}: {_where(task)}" for task in tasks]
    if len(lines) > MAX_LISTED:
        lines[MAX_LISTED:] = [f"  and {len(lines) - MAX_LISTED} more"]
    return "\n".join(lines)


def _where(task: asyncio.Task[Any]) -> str:
    frames = list(_await_chain(task.get_coro()))
    shown = [
        (code, line) for code, line in frames if not code.co_filename.startswith(_HIDDEN_FOLDERS)
    ]
    if not shown:
        shown = frames
    if not shown:
        return "has not started or waits in C code"
    code, line = shown[-1]
    text = f"{code.co_filename}:{line} in {code.co_qualname}"
    if frames[-1][0] is not code:
        text += f", waits in {frames[-1][0].co_qualname}"
    return text


def _await_chain(awaitable: Any) -> Iterable[tuple[CodeType, int]]:
    """The suspended frames from the task's coroutine down to the innermost one."""
    while awaitable is not None:
        for prefix in ("cr", "ag", "gi"):
            frame: FrameType | None = getattr(awaitable, f"{prefix}_frame", None)
            if frame is not None:
                yield frame.f_code, frame.f_lineno
            if hasattr(awaitable, f"{prefix}_frame"):
                awaitable = getattr(awaitable, f"{prefix}_await", None) or getattr(
                    awaitable, "gi_yieldfrom", None
                )
                break
        else:
            return


class BackgroundWatch:
    """Tells a run that only background tasks keep alive from one that goes on.

    A foreground task can wait for something that a background task does (a scaling decision, a
    lease that expires), so a queue without foreground timers proves nothing by itself. What
    proves it is time: at two successive looks, a patience apart, no timer or SimPy event of the
    foreground is due, and every foreground task still waits for the very same future.
    """

    def __init__(self) -> None:
        self._seen: Mapping[asyncio.Task[Any], object] | None = None

    def is_stuck(
        self, queue: Iterable[tuple[float, int, int, Any]], tasks: Iterable[asyncio.Task[Any]]
    ) -> bool:
        """Whether nothing of the foreground has moved since the last look.

        Args:
            queue: SimPy's heap of (time, priority, id, event).
            tasks: the loop's unfinished tasks.
        """
        if any(_is_foreground(event) for _, _, _, event in queue):
            self._seen = None
            return False
        waits = {
            task: waiter
            for task in tasks
            if not is_background(task, waiter := task._fut_waiter)  # type: ignore[attr-defined] # noqa: SLF001
        }
        seen, self._seen = self._seen, waits
        return (
            seen is not None
            and seen.keys() == waits.keys()
            and all(seen[task] is waiter for task, waiter in waits.items())
        )


def is_background(task: asyncio.Task[Any], waiter: Any) -> bool:
    """Whether a task is a background task, by its name or by the context that it inherited.

    Args:
        task: the task.
        waiter: the future for which it waits. The task's context is among its callbacks (tasks
            tell their context since Python 3.12 only).
    """
    if task.get_name().startswith(BACKGROUND_PREFIX):
        return True
    for callback, context in getattr(waiter, "_callbacks", None) or ():
        if getattr(callback, "__self__", None) is task:
            return bool(context.get(in_background, False))
    return False


def _is_foreground(event: Any) -> bool:
    if is_dead(event):
        return False
    if type(event) is asyncio.Future:
        return _has_foreground_waiter(event)
    if type(event) is not Timer:
        return type(event) is not Milestone
    if event._context is not None:  # noqa: SLF001
        return not event._context.get(in_background, False)  # noqa: SLF001
    return _has_foreground_waiter(event._args[0])  # noqa: SLF001 - asyncio.sleep's


def _has_foreground_waiter(future: Any) -> bool:
    waiting = future._callbacks or ()  # noqa: SLF001
    return not waiting or not all(context.get(in_background, False) for _, context in waiting)
