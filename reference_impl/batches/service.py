"""Batches of Messages requests over a queue: what the API's calls do, without HTTP, and the handler of their tasks.

A batch is stored, then enqueued, then answered for. Each request is a task of its own under the idempotency key
`batch/index`; its result is recorded once, whichever of its runs is first. A crash between storing and enqueueing is mended
when the service starts.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from reference_impl.batches.port import Batch, BatchRequest, BatchStore, ResultKind
from reference_impl.errors import InvalidRequest, NotFound, Rejected, ServiceError
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import Call
from reference_impl.queues.errors import QueueError
from reference_impl.queues.port import MessageQueue, QueuedTask
from reference_impl.task_processor import TaskProcessor
from reference_impl.telemetry import RequestTrace

__all__ = ["TASK_TYPE", "BatchService", "BatchWorker"]

TASK_TYPE: Final = "messages.batch"
MAX_REQUESTS: Final = 100_000  # the Message Batches API's own limit
_LIFE_S: Final = 24 * 3600.0
_ENQUEUE_AT_ONCE: Final = 1000
_MAX_RETRIES: Final = 5
_CUSTOM_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class _Params(msgspec.Struct):
    """What is checked of a request before it is accepted."""

    model: str
    max_tokens: int
    messages: list[msgspec.Raw]
    stream: bool = False


class _Payload(msgspec.Struct):
    """What a task carries. `tenant` scopes the call."""

    batch_id: str
    index: int
    tenant: str
    params: msgspec.Raw


_decode_params = msgspec.json.Decoder(_Params).decode


class BatchService:
    """Creates, shows, cancels and deletes batches.

    Args:
        store: keeps them. queue: carries their requests.
        wall_clock: Unix seconds.
    """

    def __init__(
        self, store: BatchStore, queue: MessageQueue, wall_clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._queue = queue
        self._wall_clock = wall_clock

    async def recover(self) -> int:
        """Enqueue what a crash left stored and not enqueued; returns how many requests."""
        by_batch: dict[str, list[tuple[int, bytes]]] = {}
        for batch_id, index, params in await self._store.not_enqueued():
            by_batch.setdefault(batch_id, []).append((index, params))
        for batch_id, requests in by_batch.items():
            batch = await self._store.get(batch_id)
            if batch is not None:
                await self._enqueue(batch, requests)
        return sum(map(len, by_batch.values()))

    async def create(self, tenant: str, requests: Sequence[BatchRequest]) -> Batch:
        """Accept a batch. Raises InvalidRequest that names the request, Rejected when the queue cannot take it."""
        _check(requests)
        now = self._wall_clock()
        batch = Batch(
            batch_id=f"msgbatch_{secrets.token_hex(12)}",
            tenant=tenant,
            created_s=now,
            expires_s=now + _LIFE_S,
            processing=len(requests),
        )
        await self._store.create(batch, requests)
        try:
            await self._enqueue(batch, [(n, bytes(r.params)) for n, r in enumerate(requests)])
        except QueueError as error:
            # Nobody was told of the batch; tasks that were taken find no request and end.
            await self._store.delete(batch.batch_id)
            raise Rejected(
                f"the queue takes no batch now ({error}); try again later", status=503
            ) from error
        return batch

    async def retrieve(self, tenant: str, batch_id: str) -> Batch:
        """Raises NotFound, for the batches of other tenants too."""
        batch = await self._store.get(batch_id)
        if batch is None or batch.tenant != tenant:
            raise NotFound(f"message batch {batch_id[:100]} not found")
        now = self._wall_clock()
        if batch.processing and now >= batch.expires_s:
            await self._store.expire(batch_id, b'{"type":"expired"}', now)
            return await self.retrieve(tenant, batch_id)
        return batch

    async def of_tenant(self, tenant: str) -> list[Batch]:
        """The newest first."""
        return await self._store.of_tenant(tenant)

    async def results(
        self, tenant: str, batch_id: str, after: int, limit: int
    ) -> list[tuple[int, bytes]]:
        """(index, line of JSON) of the results above index `after`. Raises InvalidRequest while the batch runs."""
        batch = await self.retrieve(tenant, batch_id)
        if batch.status != "ended":
            raise InvalidRequest(
                f"message batch {batch_id} has no results yet: its status is {batch.status}"
            )
        rows = await self._store.results(batch_id, after, limit)
        return [
            (index, b'{"custom_id":"%b","result":%b}\n' % (custom_id.encode(), result))
            for index, custom_id, result in rows
        ]

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

    async def _enqueue(self, batch: Batch, requests: Sequence[tuple[int, bytes]]) -> None:
        for start in range(0, len(requests), _ENQUEUE_AT_ONCE):
            await self._queue.enqueue_many(
                [
                    QueuedTask(
                        f"{batch.batch_id}/{index}",
                        TASK_TYPE,
                        _Payload(batch.batch_id, index, batch.tenant, msgspec.Raw(params)),
                        max_retries=_MAX_RETRIES,
                    )
                    for index, params in requests[start : start + _ENQUEUE_AT_ONCE]
                ]
            )
        await self._store.mark_enqueued(batch.batch_id)


class BatchWorker:
    """Answers the requests of batches: registers itself for their tasks.

    Args:
        port: answers calls. store: keeps results; shared with the service.
        new_request_ids: ids of the calls.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        port: MessagesPort,
        store: BatchStore,
        new_request_ids: Iterator[int],
        wall_clock: Callable[[], float],
    ) -> None:
        self._port = port
        self._store = store
        self._new_request_ids = new_request_ids
        self._wall_clock = wall_clock

    def register(self, processor: TaskProcessor, *, timeout_s: float = 600.0) -> None:
        processor.register_handler(TASK_TYPE, self.handle, timeout_s=timeout_s, whole_task=True)

    async def handle(self, task: QueuedTask) -> None:
        """One request, to its result. Raises the call's error while another attempt may succeed."""
        payload = msgspec.convert(task.payload, _TaskPayload)
        wanted = await self._store.still_wanted(payload.batch_id, payload.index)
        if wanted is None:
            return
        expires_s, is_canceled = wanted
        kind: ResultKind
        if is_canceled:
            kind, result = "canceled", b'{"type":"canceled"}'
        elif self._wall_clock() >= expires_s:
            kind, result = "expired", b'{"type":"expired"}'
        else:
            kind, result = await self._answer(task, payload)
        await self._store.record(payload.batch_id, payload.index, kind, result, self._wall_clock())

    async def _answer(self, task: QueuedTask, payload: _TaskPayload) -> tuple[ResultKind, bytes]:
        body = msgspec.json.encode(payload.params)
        call = Call(
            request_id=next(self._new_request_ids),
            model=payload.params["model"],
            max_tokens=payload.params["max_tokens"],
            stream=False,
            trace=RequestTrace(),
            tenant=payload.tenant,
            input_tokens=len(body) // 4,
            size_bytes=len(body),
            body=body,
        )
        try:
            completion = await self._port.complete(call)
        except ServiceError as error:
            if error.retryable and task.retry_count < task.max_retries:
                raise
            document = {
                "type": "errored",
                "error": {
                    "type": "error",
                    "error": {"type": error.error_type, "message": error.message},
                    "request_id": error.request_id or None,
                },
            }
            return "errored", msgspec.json.encode(document)
        return "succeeded", b'{"type":"succeeded","message":%b}' % completion.body


class _TaskPayload(msgspec.Struct):
    """`_Payload` as it arrives."""

    batch_id: str
    index: int
    tenant: str
    params: dict[str, Any]


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
        try:
            params = _decode_params(request.params)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"requests.{number}.params: {error}") from error
        if params.max_tokens < 1 or params.stream:
            raise InvalidRequest(
                f"requests.{number}.params: max_tokens must be at least 1, and stream cannot be true in a batch"
            )
