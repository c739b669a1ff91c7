"""Whether the mock keeps up: how late its event loop is."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["LoopLag"]

_PERIOD_S = 0.1
_WINDOW = 100


class LoopLag:
    """Wakes ten times a second and notes how late it was; `worst_s` is the worst of the last ten seconds."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque(maxlen=_WINDOW)
        self.max_s = 0.0

    def worst_s(self) -> float:
        return max(self._late_s, default=0.0)

    async def watch(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + _PERIOD_S
        while True:
            await asyncio.sleep(due_s - loop.time())
            late_s = max(0.0, loop.time() - due_s)
            self._late_s.append(late_s)
            self.max_s = max(self.max_s, late_s)
            due_s = loop.time() + _PERIOD_S
