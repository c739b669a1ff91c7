"""Running a handler: within its time, to a result that is JSON."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from reference_impl.queues.port import QueuedTask

__all__ = [
    "Handler",
    "PermanentFailure",
    "Registration",
    "Turn",
    "refuse_plain_function",
    "run_handler",
]

logger = logging.getLogger(__name__)

Handler = Callable[[Any], Awaitable[object]]

# How long a handler may take to heed its cancellation before it is left to itself.
_CANCEL_GRACE_S = 5.0


class PermanentFailure(Exception):
    """A handler raises this when no retry can help: the task goes to the dead letters with this reason."""


def refuse_plain_function(task_type: str, handler: Handler) -> None:
    """Raises TypeError: its work would be done, and its result then be no awaitable, again at every retry."""
    call = getattr(handler, "__call__", None)  # noqa: B004 - of an object, its method
    if not any(map(inspect.iscoroutinefunction, (inspect.unwrap(handler), call))):
        raise TypeError(
            f"the handler of {task_type!r} is {handler!r}, no coroutine function: define it with `async def`, and run "
            "what blocks by asyncio.to_thread"
        )


class Registration(msgspec.Struct, frozen=True):
    """What is done with tasks of one type; `whole_task`: the handler gets the task instead of its payload."""

    handler: Handler
    timeout_s: float
    whole_task: bool


async def run_handler(registration: Registration, task: QueuedTask) -> bytes:
    """The handler's result as JSON.

    Raises TimeoutError when its time is up, PermanentFailure when its result is not JSON, and what the handler raises.
    """
    argument = task if registration.whole_task else task.payload
    work = asyncio.ensure_future(registration.handler(argument))
    try:
        async with asyncio.timeout(registration.timeout_s):
            # Apart from this task, so that a handler that swallows its cancellation cannot hold on to its slot.
            result = await asyncio.shield(work)
    except (TimeoutError, asyncio.CancelledError) as error:
        if work.done():
            _raise_its_own_end(work)
        work.cancel()
        if not await _ended_within(work, _CANCEL_GRACE_S):
            logger.error(
                "task %r: its handler ignores that it was cancelled; it is left to itself",
                task.task_id,
            )
        if isinstance(error, TimeoutError):
            raise TimeoutError(
                f"the handler of {task.task_type!r} did not return within {registration.timeout_s:g} s"
            ) from None
        raise
    try:
        return msgspec.json.encode(result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PermanentFailure(
            f"the handler of {task.task_type!r} returned what is not JSON: {error}"
        ) from error


class Turn:
    """Runs of one key in this process follow each other, so that the second finds the effect of the first."""

    __slots__ = ("_key", "_turns")

    def __init__(self, turns: dict[str, asyncio.Event], key: str) -> None:
        self._turns = turns
        self._key = key

    async def __aenter__(self) -> None:
        while (other := self._turns.get(self._key)) is not None:
            await other.wait()
        self._turns[self._key] = asyncio.Event()

    async def __aexit__(self, *_: object) -> None:
        self._turns.pop(self._key).set()


def _raise_its_own_end(work: asyncio.Future[Any]) -> None:
    """A TimeoutError or cancellation that came from the handler is a failure like any other."""
    if not work.cancelled():
        work.result()
    elif (current := asyncio.current_task()) is not None and not current.cancelling():
        raise RuntimeError("the handler was cancelled from within")


async def _ended_within(work: asyncio.Future[Any], limit_s: float) -> bool:
    """Whether `work` ends within the limit; an error of it is taken note of either way."""
    try:
        async with asyncio.timeout(limit_s):
            await asyncio.gather(asyncio.shield(work), return_exceptions=True)
    except TimeoutError:
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        return False
    return True
