"""What a failure left half done of a batch is finished in the background, as soon as ledger and queue let it.

Between ledger and queue there is no transaction, so one of them may fail when the other has done its part. What is finished here
decides no answer that a client waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from reference_impl.batches.port import BatchStore
from reference_impl.database.errors import DatabaseError, summary
from reference_impl.queues.errors import QueueError

__all__ = ["BatchMender"]

log = logging.getLogger("twinload.batches")

_BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)


class BatchMender:
    """Marks what is enqueued and deletes what was refused: at once, or else later. Works on any event loop.

    Args:
        store: of the batches. enqueue: puts requests of a batch into the queue; raises a QueueError.
    """

    def __init__(
        self, store: BatchStore, enqueue: Callable[[str, Sequence[int]], Awaitable[None]]
    ) -> None:
        self._store = store
        self._enqueue = enqueue
        # While a crash's leavings are looked for: the batches of this process, which are none.
        self._own: set[str] | None = None
        # By batch, what is still to be done with it.
        self._left: dict[str, Callable[[str], Awaitable[None]]] = {}
        self._task: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Enqueue what a crash left stored and not enqueued, of batches that are not `own`."""
        self._own = set()
        self._wake()

    def own(self, batch_id: str) -> None:
        """This process is about to store and enqueue a batch."""
        if self._own is not None:
            self._own.add(batch_id)

    async def mark(self, batch_id: str) -> None:
        """Note that all of it is in the queue. Never fails: it is answered whether that is noted or not."""
        try:
            await self._store.mark_enqueued(batch_id)
        except DatabaseError as error:
            log.warning("batch %s runs, and is marked as such later: %s", batch_id, summary(error))
            self._later(batch_id, self._store.mark_enqueued)

    async def withdraw(self, batch_id: str) -> None:
        """Delete a batch of which nobody was told. Never fails: while the store is away nobody can work on it either."""
        try:
            await self._store.delete(batch_id)
        except DatabaseError as error:
            log.warning("batch %s was refused, and is deleted later: %s", batch_id, summary(error))
            self.withdraw_later(batch_id)

    def withdraw_later(self, batch_id: str) -> None:
        """`withdraw`, without asking a store now that has just failed."""
        self._later(batch_id, self._store.delete)

    async def mended(self) -> None:
        """Return when nothing is left to do."""
        if self._task is not None:
            await self._task

    async def aclose(self) -> None:
        """Give up what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _later(self, batch_id: str, finish: Callable[[str], Awaitable[None]]) -> None:
        self._left[batch_id] = finish
        self._wake()

    def _wake(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="background:batch mender")

    async def _run(self) -> None:
        """Finish all of it. Every error is met by another attempt: the ledger may not even have its tables yet."""
        failures = 0
        while self._left or self._own is not None:
            try:
                await self._mend()
            except (DatabaseError, QueueError) as error:
                if failures == 0:
                    log.warning("what was left of batches waits: %s", summary(error))
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
            else:
                failures = 0

    async def _mend(self) -> None:
        while self._left:
            batch_id, finish = next(iter(self._left.items()))
            await finish(batch_id)
            del self._left[batch_id]
        if self._own is None:
            return
        for batch_id, numbers in (await self._store.not_enqueued()).items():
            if batch_id not in self._own:
                await self._enqueue(batch_id, numbers)
                await self.mark(batch_id)
                log.warning("batch %s: %d requests were not enqueued", batch_id, len(numbers))
        self._own = None
