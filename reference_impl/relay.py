"""Passing the chunks of a stream on, as every process of the path does."""

from __future__ import annotations

from collections.abc import Awaitable

from reference_impl.compute import NO_WAIT, Compute
from reference_impl.messages import Chunk, Emit

__all__ = ["Relay"]


class Relay:
    """Passes chunks on to the client, declares the work of each, and remembers that the answer has begun."""

    __slots__ = ("_compute", "_emit", "started")

    def __init__(self, emit: Emit, compute: Compute) -> None:
        self._emit = emit
        self._compute = compute
        self.started = False

    def __call__(self, chunk: Chunk) -> Awaitable[None]:
        self.started = True
        work = self._compute.relay(chunk)
        # Live there is never work to wait for, and then no coroutine either: this runs once a chunk and hop.
        return self._emit(chunk) if work is NO_WAIT else self._after(work, chunk)

    async def _after(self, work: Awaitable[None], chunk: Chunk) -> None:
        await work
        await self._emit(chunk)
