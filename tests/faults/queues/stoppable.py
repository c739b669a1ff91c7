"""A process in virtual time that SIGSTOP stops: its tasks stand still, whatever they wait for, and its time-outs wait for it.

Tasks know their process by a context variable, which whatever they start inherits. What ended while the process was stopped, be
it an answer or a time-out, is noticed when it goes on, as by a process that does not know that it was away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import ContextVar, copy_context
from typing import Any

__all__ = ["StoppableProcess", "make_tasks_stoppable"]

_process: ContextVar[StoppableProcess | None] = ContextVar("process", default=None)


class StoppableProcess:
    """The tasks that `start` began, and theirs."""

    def __init__(self) -> None:
        self._going = asyncio.Event()
        self._going.set()

    def start(self, main: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        context = copy_context()
        context.run(_process.set, self)
        return asyncio.create_task(main, context=context)

    def stop(self) -> None:
        self._going.clear()

    def go_on(self) -> None:
        self._going.set()

    def waits(self) -> Generator[Any, Any, BaseException | None]:
        """Until it goes on; the cancellation that came meanwhile."""
        cancelled: BaseException | None = None
        while not self._going.is_set():
            try:
                yield from self._going.wait().__await__()
            except asyncio.CancelledError as error:
                cancelled = error
        return cancelled


class _Steps:
    """A coroutine, each of whose steps is taken while its process goes."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], process: StoppableProcess) -> None:
        self._coroutine = coroutine
        self._process = process

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            error = (yield from self._process.waits()) or error
            try:
                if error is None:
                    waited_for = self._coroutine.send(None)
                else:
                    waited_for = self._coroutine.throw(error)
            except StopIteration as end:
                return end.value
            error = None
            try:
                yield waited_for
            except BaseException as thrown:  # noqa: BLE001 - it is the coroutine's, when its process goes on
                error = thrown


async def _run(coroutine: Coroutine[Any, Any, Any], process: StoppableProcess) -> Any:
    return await _Steps(coroutine, process)


def make_tasks_stoppable(loop: asyncio.AbstractEventLoop) -> None:
    """Have `loop` make the tasks of a `StoppableProcess` so that they can be stopped."""

    def factory(
        loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        context = options.get("context")
        process = _process.get() if context is None else context.get(_process)
        loop.set_task_factory(None)  # the loop's own tasks, whose order is the program's
        try:
            if process is None:
                return loop.create_task(coroutine, **options)
            task = loop.create_task(_run(coroutine, process), **options)
            # One that is cancelled before its first step never gets to it.
            task.add_done_callback(lambda _: coroutine.close())
            return task
        finally:
            loop.set_task_factory(factory)

    loop.set_task_factory(factory)
