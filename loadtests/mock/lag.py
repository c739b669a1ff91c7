"""Whether the mock's event loop keeps up: how late it wakes."""

from __future__ import annotations

import asyncio
from collections import deque

from loadtests.mock.validity import Punctuality

__all__ = ["LoopLag"]

_PERIOD_S = 0.1
_WINDOW = 100


class LoopLag:
    """Wakes ten times a second and notes how late it was."""

    def __init__(self) -> None:
        self.punctuality = Punctuality("wake-ups of the event loop")
        self._recent_s: deque[float] = deque(maxlen=_WINDOW)

    def worst_s(self) -> float:
        """The worst of the last ten seconds."""
        return max(self._recent_s, default=0.0)

    async def watch(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _PERIOD_S
            await asyncio.sleep(_PERIOD_S)
            late_s = max(0.0, loop.time() - due_s)
            self._recent_s.append(late_s)
            self.punctuality.add(late_s)
