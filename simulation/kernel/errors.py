"""What can end a run in virtual time, other than the program's own exceptions."""

from collections.abc import Mapping, Sequence
from typing import Any


class KernelError(Exception):
    """Root of the kernel's errors."""


class Deadlock(KernelError):
    """Nothing is left to happen, and the main coroutine still waits.

    Its text lists the waiting tasks, oldest first, and where each of them waits.
    """


class NotInVirtualTime(KernelError):
    """A call that reaches outside the process (socket, thread, subprocess, signal).

    Such a call would take real time, which the virtual clock cannot see. Put a model behind the
    port, or keep the code that makes the call inside a live adapter.
    """

    def __init__(self, call: str) -> None:
        super().__init__(
            f"loop.{call} reaches outside the process and takes real time, so it has no meaning "
            "in virtual time: put a model behind this port"
        )
        self.call = call


class Spinning(KernelError):
    """Callbacks run on and on at one instant: code that waits without letting time pass."""


class LimitExceeded(KernelError):
    """The run reached a bound that its caller set: virtual time, events or wall-clock time."""


class UnhandledErrors(KernelError):
    """Exceptions that nobody retrieved, or async generators left to the garbage collector.

    Attributes:
        contexts: what asyncio hands an exception handler, one mapping per error, in order.
    """

    def __init__(self, contexts: Sequence[Mapping[str, Any]]) -> None:
        super().__init__("\n".join(describe_context(context) for context in contexts))
        self.contexts = tuple(contexts)
        # Its traceback is where to look first.
        self.__cause__ = next(
            (context["exception"] for context in contexts if "exception" in context), None
        )


class Stopped(BaseException):
    """Internal: leaves the loop's turns, because of stop() or with an error that ends the run."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def describe_context(context: Mapping[str, Any]) -> str:
    """One line on an exception-handler context: its message, the error and whose it is."""
    line = str(context.get("message", "unhandled error"))
    exception = context.get("exception")
    if exception is not None:
        line += f": {type(exception).__name__}: {exception}"
    owner = context.get("task") or context.get("future") or context.get("handle")
    if owner is not None:
        line += f" ({owner!r})"
    return line
