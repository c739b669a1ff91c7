"""The gate that the stream of an attempt passes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from reference_impl.compute import NO_WAIT
from reference_impl.messages import Chunk, Emit

__all__ = ["ContentGate"]


class ContentGate:
    """Holds the chunks of a stream back until the first that carries content, then passes all on.

    What precedes the content can be taken back while nobody has seen it: a failed attempt leaves no trace.
    """

    __slots__ = ("_emit", "_held", "_loop", "first_content_s", "opened")

    def __init__(self, emit: Emit, loop: asyncio.AbstractEventLoop) -> None:
        self._emit = emit
        self._loop = loop
        self._held: list[Chunk] = []
        self.opened = False
        self.first_content_s = 0.0

    def __call__(self, chunk: Chunk) -> Awaitable[None]:
        if self.opened:
            return self._emit(chunk)
        if not chunk.content:
            self._held.append(chunk)
            return NO_WAIT
        self.opened = True
        self.first_content_s = self._loop.time()
        return self._release(chunk) if self._held else self._emit(chunk)

    async def _release(self, chunk: Chunk) -> None:
        await self.flush()
        await self._emit(chunk)

    def discard(self) -> None:
        """Forget what a failed attempt left."""
        self._held.clear()

    async def flush(self) -> None:
        """Pass on what is held: an answer without content has ended."""
        if self._held:
            held, self._held = self._held, []
            for chunk in held:
                await self._emit(chunk)
