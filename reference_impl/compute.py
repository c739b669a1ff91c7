"""The port through which CPU work is declared.

Python code takes no virtual time, so the request path names its CPU work at its natural points. Live, naming costs one
no-op await: the work takes the time it takes. In virtual time the port holds the one CPU of that process (its event loop)
for the calibrated demand, in order of arrival. Threads and processes are reached through it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Final, Literal, ParamSpec, Protocol, TypeVar, cast

from reference_impl.messages import Chunk

__all__ = ["NO_WAIT", "Compute", "InlineCompute", "Step"]

P = ParamSpec("P")
T = TypeVar("T")

# The points of the request path at which work is declared.
Step = Literal["parse", "lookup", "forward", "chunk", "encode", "embed", "client"]


class _NoWait:
    """What an await passes over; it can be awaited again and again, which a coroutine cannot."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return _NOTHING


_NOTHING: Final = cast("Generator[None, None, None]", iter(()))  # exhausted, and stays so
NO_WAIT: Final[Awaitable[None]] = _NoWait()


class Compute(Protocol):
    """The CPU of one process."""

    def use(self, step: Step, kilobytes: float = 0.0) -> Awaitable[None]:
        """Account for `step` over a payload of `kilobytes`, to be awaited at once: waits in virtual time, not live."""
        ...

    def relay(self, chunk: Chunk) -> Awaitable[None]:
        """Account for passing on a chunk of a stream, as `use("chunk")` of its size; see `Chunk.over_s`."""
        ...

    async def offload(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking or heavy work away from the event loop."""
        ...


class InlineCompute:
    """Live: declared work costs nothing extra; off-loaded work runs on a thread."""

    def use(self, step: Step, kilobytes: float = 0.0) -> Awaitable[None]:  # noqa: ARG002
        """Nothing to wait for: the work itself takes the time."""
        return NO_WAIT

    def relay(self, chunk: Chunk) -> Awaitable[None]:  # noqa: ARG002
        """Nothing to wait for here either."""
        return NO_WAIT

    async def offload(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(function, *args, **kwargs)
