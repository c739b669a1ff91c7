"""What surrounds one attempt of a call: the timer that ends it, and the gate that its stream passes."""

from __future__ import annotations

import asyncio

from reference_impl.messages import Chunk, Emit

__all__ = ["AttemptTimer", "ContentGate"]


class AttemptTimer:
    """Cancels the current task at `when_s` on the loop's clock, once.

    It does what `asyncio.timeout` does, with the same rule for cancellations from elsewhere, without a context manager's
    cost: the request path makes one an attempt.
    """

    __slots__ = ("_cancellations", "_handle", "_task", "expired", "when_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, when_s: float) -> None:
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._cancellations = task.cancelling()
        self._handle = loop.call_at(when_s, self._expire)
        self.expired = False
        self.when_s = when_s

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()

    def cancel(self) -> None:
        self._handle.cancel()

    def was_the_cause(self) -> bool:
        """Whether a cancellation that arrived is this timer's alone. To be asked once, when the attempt has ended."""
        return self.expired and self._task.uncancel() <= self._cancellations


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

    async def __call__(self, chunk: Chunk) -> None:
        if self.opened:
            await self._emit(chunk)
            return
        if not chunk.content:
            self._held.append(chunk)
            return
        self.opened = True
        self.first_content_s = self._loop.time()
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
