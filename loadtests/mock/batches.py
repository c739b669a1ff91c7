"""`/v1/messages/batches`: accepted at once, worked on in the background, results by line.

Batches stand outside the rate limits of Messages and cost half. Each request takes the time that the profile draws for it,
at most `concurrency` at once. Batches live as long as the process.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from loadtests.mock.exchange import Exchange
from loadtests.mock.pages import page
from reference_impl.errors import InvalidRequest, NotFound, ServiceError
from reference_impl.messages import Call
from reference_impl.telemetry import RequestTrace
from simulation.models.endpoint.request import parse_messages
from simulation.models.endpoint.wire import error_body
from simulation.models.llm_endpoint import LLMEndpoint

__all__ = ["BatchRoutes"]

_BODY_MEGABYTES: Final = 256
_MAX_REQUESTS: Final = 100_000
_LIFE_S: Final = 24 * 3600.0
_CUSTOM_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")

Status = Literal["processing", "succeeded", "errored", "canceled", "expired"]


class _BatchItem(msgspec.Struct):
    custom_id: str
    params: msgspec.Raw


class _BatchBody(msgspec.Struct):
    requests: list[_BatchItem]


_batch_body = msgspec.json.Decoder(_BatchBody)


class _Item:
    """One request of a batch."""

    __slots__ = ("custom_id", "params", "result", "status")

    def __init__(self, custom_id: str, params: bytes) -> None:
        self.custom_id = custom_id
        self.params = params
        self.status: Status = "processing"
        self.result = b""

    def end(self, status: Status, field: str = "", document: bytes = b"") -> None:
        if self.status != "processing":
            return
        self.status = status
        self.params = b""
        parts = b',"%s":%s' % (field.encode(), document) if field else b""
        self.result = b'{"custom_id":"%s","result":{"type":"%s"%s}}\n' % (
            self.custom_id.encode(),
            status.encode(),
            parts,
        )


class _Batch:
    """A batch and its work."""

    def __init__(self, batch_id: str, account: str, items: list[_Item], created: datetime) -> None:
        self.id = batch_id
        self.account = account
        self.items = items
        self.created = created
        self.ended: datetime | None = None
        self.cancel_initiated: datetime | None = None
        self.work: asyncio.Task[None] | None = None

    @property
    def status(self) -> str:
        if self.ended is not None:
            return "ended"
        return "in_progress" if self.cancel_initiated is None else "canceling"


class BatchRoutes:
    """Batches of all accounts.

    Args:
        wall_clock: for the dates that clients read.
        next_id: gives request ids to the requests of batches.
        speedup: of the profile; a batch expires after 24 hours of its time.
    """

    def __init__(
        self,
        endpoint: LLMEndpoint,
        *,
        wall_clock: Callable[[], float],
        next_id: Callable[[], int],
        concurrency: int,
    ) -> None:
        self._endpoint = endpoint
        self._wall_clock = wall_clock
        self._next_id = next_id
        self._concurrency = concurrency
        self._batches: dict[str, _Batch] = {}
        self._serial = itertools.count(1)

    async def aclose(self) -> None:
        """Give up what is not done."""
        for batch in self._batches.values():
            if batch.work is not None and not batch.work.done():
                batch.work.cancel()
                await asyncio.wait([batch.work])

    async def route(
        self, exchange: Exchange, account: str, version: str, method: str, rest: list[str]
    ) -> None:
        """Dispatch what follows `/v1/messages/batches`."""
        match (method, rest):
            case ("POST", []):
                await self._create(exchange, account, version)
            case ("GET", []):
                own = [b for b in reversed(self._batches.values()) if b.account == account]
                await exchange.reply_json(page(exchange, [self._show(exchange, b) for b in own]))
            case ("GET", [batch_id]):
                batch = self._find(account, batch_id)
                await exchange.reply_json(self._show(exchange, batch))
            case ("GET", [batch_id, "results"]):
                await self._results(exchange, self._find(account, batch_id))
            case ("POST", [batch_id, "cancel"]):
                await self._cancel(exchange, self._find(account, batch_id))
            case ("DELETE", [batch_id]):
                await self._delete(exchange, self._find(account, batch_id))
            case _:
                raise InvalidRequest(f"Method {method} is not allowed here", status=405)

    def _find(self, account: str, batch_id: str) -> _Batch:
        batch = self._batches.get(batch_id)
        if batch is None or batch.account != account:
            raise NotFound(f"Message batch {batch_id[:100]} not found.")
        return batch

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall_clock(), UTC)

    async def _create(self, exchange: Exchange, account: str, version: str) -> None:
        body = await exchange.body(_BODY_MEGABYTES)
        try:
            requests = _batch_body.decode(body).requests
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"requests: {str(error)[:200]}") from error
        if not 1 <= len(requests) <= _MAX_REQUESTS:
            raise InvalidRequest(f"requests: a batch holds 1 to {_MAX_REQUESTS} requests")
        seen: set[str] = set()
        for i, request in enumerate(requests):
            if not _CUSTOM_ID.fullmatch(request.custom_id):
                raise InvalidRequest(
                    f"requests.{i}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'"
                )
            if request.custom_id in seen:
                raise InvalidRequest(f"requests.{i}.custom_id: not unique: {request.custom_id}")
            seen.add(request.custom_id)
        items = [_Item(request.custom_id, bytes(request.params)) for request in requests]
        batch = _Batch(f"msgbatch_{next(self._serial):012d}", account, items, self._now())
        self._batches[batch.id] = batch
        batch.work = asyncio.create_task(
            self._work(batch, version, beta=exchange.beta), name=f"background:{batch.id}"
        )
        await exchange.reply_json(self._show(exchange, batch))

    async def _work(self, batch: _Batch, version: str, *, beta: bool) -> None:
        pending = iter(batch.items)

        async def worker() -> None:
            for item in pending:
                if batch.cancel_initiated is not None:
                    return
                await self._answer(item, batch.account, version, beta=beta)

        workers = min(self._concurrency, len(batch.items))
        left: Status = "canceled"
        try:
            async with asyncio.timeout(_LIFE_S / self._endpoint.profile.speedup):
                await asyncio.gather(*(worker() for _ in range(workers)))
        except TimeoutError:
            left = "expired"
        for item in batch.items:
            item.end(left)
        batch.ended = self._now()

    async def _answer(self, item: _Item, account: str, version: str, *, beta: bool) -> None:
        body = item.params
        try:
            request = parse_messages(body, version=version, beta=beta)
            if request.stream:
                raise InvalidRequest("stream: streaming is not supported in batches")
            call = Call(
                request_id=self._next_id(),
                model=request.model,
                max_tokens=request.max_tokens,
                stream=False,
                trace=RequestTrace(),
                tenant=account,
                size_bytes=len(body),
                body=body,
            )
            attempt = self._endpoint.admit(call, request, account=account, batch=True)
            completion = await self._endpoint.deliver(attempt)
        except ServiceError as error:
            details = getattr(error, "details", None)
            item.end("errored", "error", error_body(error.error_type, error.message, "", details))
        else:
            item.end("succeeded", "message", completion.body)

    async def _cancel(self, exchange: Exchange, batch: _Batch) -> None:
        if batch.ended is not None:
            raise InvalidRequest(f"Batch {batch.id} has ended and cannot be canceled.")
        if batch.cancel_initiated is None:
            batch.cancel_initiated = self._now()
        await exchange.reply_json(self._show(exchange, batch))

    async def _delete(self, exchange: Exchange, batch: _Batch) -> None:
        if batch.ended is None:
            raise InvalidRequest(f"Batch {batch.id} is still in progress: cancel it first.")
        del self._batches[batch.id]
        await exchange.reply_json({"id": batch.id, "type": "message_batch_deleted"})

    async def _results(self, exchange: Exchange, batch: _Batch) -> None:
        if batch.ended is None:
            raise InvalidRequest(f"Batch {batch.id} has not ended: no results yet.")
        # Unordered, as the API promises nothing else: clients must go by custom_id.
        lines = [item.result for item in reversed(batch.items)]
        await exchange.reply(
            200, b"".join(lines), content_type=(b"content-type", b"application/x-jsonl")
        )

    def _show(self, exchange: Exchange, batch: _Batch) -> dict[str, Any]:
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        if batch.ended is None:
            counts["processing"] = len(batch.items)  # the API counts only once all have ended
        else:
            for item in batch.items:
                counts[item.status] += 1
        host = exchange.header(b"host")
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": batch.status,
            "request_counts": counts,
            "created_at": _rfc3339(batch.created),
            "expires_at": _rfc3339(batch.created + timedelta(seconds=_LIFE_S)),
            "ended_at": _rfc3339(batch.ended),
            "cancel_initiated_at": _rfc3339(batch.cancel_initiated),
            "archived_at": None,
            "results_url": (
                f"http://{host}/v1/messages/batches/{batch.id}/results" if batch.ended else None
            ),
        }


def _rfc3339(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat().replace("+00:00", "Z")
