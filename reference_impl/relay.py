"""Passing the chunks of a stream on, as every process of the path does."""

from __future__ import annotations

from reference_impl.compute import Compute
from reference_impl.messages import Chunk, Emit

__all__ = ["Relay"]


class Relay:
    """Passes chunks on to the client, declares the work of each, and remembers that the answer has begun."""

    __slots__ = ("_compute", "_emit", "started")

    def __init__(self, emit: Emit, compute: Compute) -> None:
        self._emit = emit
        self._compute = compute
        self.started = False

    async def __call__(self, chunk: Chunk) -> None:
        self.started = True
        await self._compute.relay(chunk)
        await self._emit(chunk)
