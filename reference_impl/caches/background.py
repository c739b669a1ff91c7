"""Tasks that a cache starts for itself: kept from the garbage collector, named for the kernel, ended with their owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

__all__ = ["BackgroundTasks"]

logger = logging.getLogger(__name__)


class BackgroundTasks:
    """A set of tasks; one that fails is logged, because nobody awaits it."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, object], purpose: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine, name=f"background:{self._owner}-{purpose}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def aclose(self) -> None:
        """Cancel what still runs and wait for its end."""
        while self._tasks:
            task = next(iter(self._tasks))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._tasks.discard(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)
