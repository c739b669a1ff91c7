"""The port through which CPU work is declared.

Python code takes no virtual time, so the request path names its CPU work at its natural points. Live, naming costs one
no-op await: the work takes the time it takes. In virtual time the port holds the one CPU of that process (its event loop)
for the calibrated demand, in order of arrival. Threads and processes are reached through it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, ParamSpec, Protocol, TypeVar

from reference_impl.messages import Chunk

__all__ = ["Compute", "InlineCompute", "Step"]

P = ParamSpec("P")
T = TypeVar("T")

# The points of the request path at which work is declared.
Step = Literal["parse", "lookup", "forward", "chunk", "encode", "embed", "client"]


class Compute(Protocol):
    """The CPU of one process."""

    async def use(self, step: Step, kilobytes: float = 0.0) -> None:
        """Account for `step` over a payload of `kilobytes`: waits in virtual time, returns at once live."""
        ...

    async def relay(self, chunk: Chunk) -> None:
        """Account for passing on a chunk of a stream, as `use("chunk")` of its size; see `Chunk.over_s`."""
        ...

    async def offload(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking or heavy work away from the event loop."""
        ...


class InlineCompute:
    """Live: declared work costs nothing extra; off-loaded work runs on a thread."""

    async def use(self, step: Step, kilobytes: float = 0.0) -> None:
        """Nothing to wait for: the work itself takes the time."""

    async def relay(self, chunk: Chunk) -> None:
        """Nothing to wait for here either."""

    async def offload(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(function, *args, **kwargs)
