"""Between SimPy and asyncio: a coroutine waits for an event, a process for a future."""

import asyncio
from typing import Any

from simpy.events import Event

from simulation.kernel.errors import KernelError
from simulation.kernel.loop import SimulationLoop


async def await_event(event: Event) -> Any:
    """Wait until a SimPy event of this loop's environment has happened, and return its value.

    A resource is used as in SimPy, with the request as a context manager:
    `with resource.request() as request: await await_event(request)`.

    Raises:
        Exception: what the event failed with.
        KernelError: the event belongs to another environment.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, SimulationLoop) or event.env is not loop.env:
        raise KernelError(f"{event!r} belongs to another environment than the running loop")
    if event.callbacks is not None:
        future: asyncio.Future[None] = loop.create_future()

        def happened(event: Event) -> None:
            if not event._ok:  # noqa: SLF001
                event.defused = True
            # Not set here but as a callback of this turn, where timers run too: a time-out of
            # the same instant then wins, as it does against the result of a socket.
            loop.call_soon(_wake, future)

        event.callbacks.append(happened)
        try:
            await future
        except asyncio.CancelledError:
            # Nobody waits any more, so a failure of the event must not count as handled.
            if event.callbacks is not None:
                event.callbacks.remove(happened)
            raise
    if event.ok:
        return event.value
    assert isinstance(event.value, BaseException)
    raise event.value


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def as_event(future: "asyncio.Future[Any]") -> Event:
    """A SimPy event that happens when the future (or task) is done, with its value or failure.

    A cancelled future fails the event with `asyncio.CancelledError`.
    """
    loop = future.get_loop()
    if not isinstance(loop, SimulationLoop):
        raise KernelError(f"{future!r} belongs to a loop without an environment")
    event = Event(loop.env)

    def done(future: "asyncio.Future[Any]") -> None:
        try:
            event.succeed(future.result())
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001 - handed to SimPy
            event.fail(failure)  # type: ignore[arg-type]

    future.add_done_callback(done)
    return event
