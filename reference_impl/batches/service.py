"""Batches of Messages requests over a queue: what the API's calls do, without HTTP.

A batch is stored, then enqueued, then answered for by workers (`worker.py`). Each request is a task of its own under the
idempotency key `batch/index`, and carries no more than that: the request itself may be megabytes, and stays in the store. A
crash between storing and enqueueing is mended after the next start.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from reference_impl.batches.mending import BatchMender
from reference_impl.batches.port import Batch, BatchPage, BatchRequest, BatchStore
from reference_impl.compute import Compute, InlineCompute
from reference_impl.database.errors import DatabaseUnavailable
from reference_impl.errors import InvalidRequest, NotFound, Rejected
from reference_impl.messages import BYTES_PER_KB
from reference_impl.queues.errors import QueueError
from reference_impl.queues.port import MessageQueue, QueuedTask

__all__ = ["TASK_TYPE", "BatchService"]

log = logging.getLogger("twinload.batches")

TASK_TYPE: Final = "messages.batch"
MAX_REQUESTS: Final = 100_000  # the Message Batches API's own limit
_LIFE_S: Final = 24 * 3600.0
_CLOSE_S: Final = 5.0
_ENQUEUE_AT_ONCE: Final = 1000
_RESULTS_AT_ONCE: Final = 500
_CUSTOM_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def secret_id() -> str:
    """A batch's id that nobody guesses."""
    return f"msgbatch_{secrets.token_hex(12)}"


class BatchService:
    """Creates, shows, cancels and deletes batches.

    Args:
        store: keeps them. queue: carries their requests, and is closed with the service.
        wall_clock: Unix seconds.
        max_retries: attempts of a request beyond its first.
        compute: the CPU of this process. new_id: names the next batch.
    """

    def __init__(
        self,
        store: BatchStore,
        queue: MessageQueue,
        wall_clock: Callable[[], float],
        *,
        max_retries: int = 20,
        compute: Compute | None = None,
        new_id: Callable[[], str] = secret_id,
    ) -> None:
        self._store = store
        self._queue = queue
        self._wall_clock = wall_clock
        self._max_retries = max_retries
        self._compute: Compute = InlineCompute() if compute is None else compute
        self._new_id = new_id
        self._mender = BatchMender(store, self._enqueue)

    async def start(self) -> None:
        """Wait for the queue; in the background, enqueue what a crash left stored and not enqueued. Raises a QueueError."""
        await self._queue.statistics()
        self._mender.look()

    async def create(self, tenant: str, requests: Sequence[BatchRequest]) -> Batch:
        """Accept a batch, its requests unread. Raises InvalidRequest that names a wrong id, Rejected without a queue."""
        size_bytes = sum(len(bytes(request.params)) for request in requests)
        await self._compute.use("parse", size_bytes / BYTES_PER_KB)
        _check(requests)
        now = self._wall_clock()
        batch = Batch(
            batch_id=self._new_id(),
            tenant=tenant,
            created_s=now,
            expires_s=now + _LIFE_S,
            processing=len(requests),
        )
        self._mender.own(batch.batch_id)
        # A client that is refused submits again, so of a batch that is refused nothing may be left that is worked on.
        try:
            await self._store.create(batch, requests)
        except DatabaseUnavailable as error:
            if not error.safe_to_repeat:  # it may be stored nevertheless
                self._mender.withdraw_later(batch.batch_id)
            raise
        try:
            await self._enqueue(batch.batch_id, range(len(requests)))
        except QueueError as error:
            # Tasks that were taken find no request and end.
            await self._mender.withdraw(batch.batch_id)
            raise Rejected(
                f"the queue takes no batch now ({error}); try again later", status=503
            ) from error
        # From here on it is answered, so it is accepted whatever becomes of the mark.
        await self._mender.mark(batch.batch_id)
        return batch

    async def retrieve(self, tenant: str, batch_id: str) -> Batch:
        """Raises NotFound, for the batches of other tenants too."""
        batch = await self._store.get(batch_id)
        if batch is not None and batch.tenant == tenant:
            batch = await self._as_of_now(batch)
            if batch is not None:
                return batch
        raise NotFound(f"message batch {batch_id[:100]} not found")

    async def of_tenant(
        self, tenant: str, limit: int, *, after_id: str | None = None, before_id: str | None = None
    ) -> BatchPage:
        """A page of them, the newest first; see `BatchStore.of_tenant`. Raises InvalidRequest for a cursor that is no batch."""
        page = await self._store.of_tenant(tenant, limit, after_id=after_id, before_id=before_id)
        if page is None:
            side, cursor = ("before_id", before_id) if after_id is None else ("after_id", after_id)
            raise InvalidRequest(f"{side}: no batch {(cursor or '')[:100]!r}")
        now = [await self._as_of_now(batch) for batch in page.batches]
        return BatchPage([batch for batch in now if batch is not None], page.has_more)

    async def results(self, tenant: str, batch_id: str) -> AsyncIterator[bytes]:
        """Lines of JSON, one a result. Raises InvalidRequest while the batch runs.

        It raises NotFound on the way where the batch is deleted meanwhile: what was read so far is not all.
        """
        batch = await self.retrieve(tenant, batch_id)
        if batch.status != "ended":
            raise InvalidRequest(
                f"message batch {batch_id} has no results yet: its status is {batch.status}"
            )
        first = await self._store.results(batch_id, -1, _RESULTS_AT_ONCE)
        return self._lines(batch, first)

    async def _lines(
        self, batch: Batch, rows: list[tuple[int, str, bytes]]
    ) -> AsyncIterator[bytes]:
        """A batch that has ended stays as it is, so it is not looked at again for each page of its results."""
        left = batch.succeeded + batch.errored + batch.canceled + batch.expired
        while rows:
            left -= len(rows)
            yield b"".join(
                b'{"custom_id":"%b","result":%b}\n' % (custom_id.encode(), result)
                for _, custom_id, result in rows
            )
            if not left:
                return
            rows = await self._store.results(batch.batch_id, rows[-1][0], _RESULTS_AT_ONCE)
        raise NotFound(f"message batch {batch.batch_id} was deleted while its results were read")

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """End it early: what is not running yet is canceled, as the workers come to it."""
        batch = await self.retrieve(tenant, batch_id)
        if batch.status != "ended":
            await self._store.cancel(batch_id, self._wall_clock())
        return await self.retrieve(tenant, batch_id)

    async def delete(self, tenant: str, batch_id: str) -> None:
        batch = await self.retrieve(tenant, batch_id)
        if batch.status != "ended":
            raise InvalidRequest(f"message batch {batch_id} is {batch.status}: cancel it first")
        await self._store.delete(batch_id)

    async def _as_of_now(self, batch: Batch) -> Batch | None:
        """Whoever looks first after its day is over ends a batch, as of that instant. None: it was deleted meanwhile."""
        if not batch.processing or self._wall_clock() < batch.expires_s:
            return batch
        await self._store.expire(batch.batch_id, b'{"type":"expired"}', batch.expires_s)
        return await self._store.get(batch.batch_id)

    async def mended(self) -> None:
        """Return when what failures left half done is finished."""
        await self._mender.mended()

    async def aclose(self) -> None:
        """Close the queue; the store is the ledger's."""
        await self._mender.aclose()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._queue.close()
        except (QueueError, TimeoutError) as error:
            log.warning("batches: the queue does not close: %s", error or "no answer in time")

    async def _enqueue(self, batch_id: str, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _ENQUEUE_AT_ONCE):
            await self._queue.enqueue_many(
                [
                    QueuedTask(
                        f"{batch_id}/{number}", TASK_TYPE, None, max_retries=self._max_retries
                    )
                    for number in numbers[start : start + _ENQUEUE_AT_ONCE]
                ]
            )


def _check(requests: Sequence[BatchRequest]) -> None:
    if not 1 <= len(requests) <= MAX_REQUESTS:
        raise InvalidRequest(f"requests: expected 1 to {MAX_REQUESTS} of them, got {len(requests)}")
    seen: set[str] = set()
    for number, request in enumerate(requests):
        if not _CUSTOM_ID.fullmatch(request.custom_id):
            raise InvalidRequest(
                f"requests.{number}.custom_id: expected 1 to 64 letters, digits, _ or -"
            )
        if request.custom_id in seen:
            raise InvalidRequest(
                f"requests.{number}.custom_id: {request.custom_id!r} is used twice"
            )
        seen.add(request.custom_id)
