"""A bound on the time of the current task's work, at a third of what `asyncio.timeout` costs."""

from __future__ import annotations

import asyncio

__all__ = ["TimeLimit"]


class TimeLimit:
    """Cancels the current task at `when_s` on the loop's clock, once.

    It does what `asyncio.timeout` does, with the same rule for cancellations from elsewhere, without a context manager's
    cost: the request path makes one a request and one an attempt. The owner asks `was_the_cause` when the work has
    raised, and calls `cancel` in any case.
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
        """Whether a cancellation that arrived is this limit's alone. To be asked once, whatever the work raised."""
        return self.expired and self._task.uncancel() <= self._cancellations
