"""The ASGI applications: one over the gateway, one over an instance. `python -m reference_impl.service` starts a process.

Both speak the Messages API. The answer is pushed from the endpoint through to `send`, so a client that leaves cancels
the whole path, and a slot is held exactly until the last byte is out. Bytes of server-sent events pass through unread.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reference_impl.batches.routes import BatchRoutes
from reference_impl.errors import (
    AuthenticationFailed,
    PayloadTooLarge,
    ServiceError,
)
from reference_impl.http_errors import REQUEST_ID_HEADER, error_document, routing_errors
from reference_impl.instances.port import InstanceMetrics
from reference_impl.llm.port import MessagesPort
from reference_impl.llm.wire import ATTEMPTS_HEADER, OUTCOME_HEADER
from reference_impl.messages import TAG_HEADER, Call, Chunk, RequestTag
from reference_impl.metrics import ServiceMetrics
from reference_impl.request_head import read_head
from reference_impl.telemetry import RequestTrace

__all__ = [
    "CONTROL_TOKEN_HEADER",
    "HEARTBEAT_PATH",
    "MessagesEndpoint",
    "gateway_app",
    "instance_app",
    "request_ids",
]

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

HEARTBEAT_PATH = "/internal/heartbeat"
CONTROL_TOKEN_HEADER = "x-control-token"  # noqa: S105 - the name of a header
MAX_BODY_BYTES = 32 * 1024 * 1024  # the Messages API's own limit

log = logging.getLogger("twinload.service")

JSON_TYPE = (b"content-type", b"application/json")
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


class MessagesEndpoint:
    """`POST /v1/messages` over a `MessagesPort`.

    Args:
        port: answers the calls.
        metrics: counters of this process.
        new_request_ids: ids for requests that carry no tag.
        tenants: API key -> tenant; empty: every key, and none, is accepted as tenant "".
        on_done: told every call when its answer is out, however it ended.
        trust_tags: heed all of `x-twinload-request`, as where the endpoint is a mock. Else only the request id and the attempt,
            by which rows are joined and nothing is paid.
    """

    def __init__(
        self,
        port: MessagesPort,
        metrics: ServiceMetrics,
        new_request_ids: Iterator[int],
        tenants: Mapping[str, str] | None = None,
        *,
        on_done: Callable[[Call], None] | None = None,
        trust_tags: bool = False,
    ) -> None:
        self._port = port
        self._metrics = metrics
        self._new_request_ids = new_request_ids
        self._on_done = on_done
        self._trust_tags = trust_tags
        self._tenants = {key.encode(): tenant for key, tenant in (tenants or {}).items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = _Reply(send)
        started_s = asyncio.get_running_loop().time()
        outcome = "ok"
        try:
            call = self._call(scope, await _read_body(receive))
            reply.call = call
            await self._answer(call, receive, reply)
        except ServiceError as error:
            outcome = error.outcome
            await reply.fail(error)
        except _ClientLeft:
            outcome = "cancelled"
        except Exception:  # the edge of the process: whatever it was, the client gets an answer
            log.exception("a request failed in a way that nobody foresaw")
            outcome = "server_error"
            await reply.fail(ServiceError("internal error"))
        finally:
            self._metrics.observe(outcome, asyncio.get_running_loop().time() - started_s)
            if self._on_done is not None and reply.call is not None:
                self._on_done(reply.call)

    async def _answer(self, call: Call, receive: Receive, reply: _Reply) -> None:
        """Complete the call; a disconnect of the client cancels it."""
        work = asyncio.current_task()
        assert work is not None
        watcher = asyncio.create_task(
            _cancel_on_disconnect(receive, work), name="background:disconnect"
        )
        try:
            if call.stream:
                await self._port.complete(call, reply.chunk)
                await reply.end()
            else:
                completion = await self._port.complete(call)
                await reply.whole(completion.body)
        except asyncio.CancelledError:
            if watcher.done() and not watcher.cancelled() and work.uncancel() == 0:
                raise _ClientLeft from None
            raise
        finally:
            watcher.cancel()

    def _call(self, scope: Scope, body: bytes) -> Call:
        headers = dict(scope["headers"])
        tenant = self.authenticate(headers)
        head = read_head(body, "the body is no Messages request")
        raw_tag = headers.get(TAG_HEADER.encode())
        tag = RequestTag.decode(raw_tag.decode("latin-1")) if raw_tag else None
        input_tokens = len(body) // 4
        if tag is not None and self._trust_tags:
            input_tokens = tag.input_tokens
        elif tag is not None:
            tag = RequestTag(tag.request_id, tag.attempt)
        return Call(
            request_id=tag.request_id if tag else next(self._new_request_ids),
            attempt=tag.attempt if tag else 0,
            model=head.model,
            max_tokens=head.max_tokens,
            stream=head.stream,
            trace=RequestTrace(),
            tenant=tenant,
            input_tokens=input_tokens,
            size_bytes=len(body),
            body=body,
            tag=tag,
        )

    def new_request_id(self) -> str:
        """The name of a request that is no call."""
        return _shown_id(next(self._new_request_ids))

    def authenticate(self, headers: Mapping[bytes, bytes]) -> str:
        """The tenant whose key the headers hold. Raises AuthenticationFailed."""
        if not self._tenants:
            return ""
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(
            b"Bearer "
        )
        found = None
        for (
            key,
            tenant,
        ) in self._tenants.items():  # no early exit: the time tells nothing of the keys
            if hmac.compare_digest(key, given):
                found = tenant
        if found is None:
            raise AuthenticationFailed("invalid x-api-key or bearer token")
        return found


class _ClientLeft(Exception):
    """The client disconnected and its work was cancelled."""


async def _cancel_on_disconnect(receive: Receive, work: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    work.cancel()


async def _read_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"the body exceeds {MAX_BODY_BYTES} bytes")
        parts.append(part)
        if not message.get("more_body", False):
            return part if len(parts) == 1 else b"".join(parts)


class _Reply:
    """The response under way: whole, streamed, or failed before or after its first byte."""

    __slots__ = ("_send", "_streaming", "call")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._streaming = False
        self.call: Call | None = None

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        call = self.call
        if call is None:
            return [(REQUEST_ID_HEADER.encode(), b"req_unread")]
        headers = [
            (REQUEST_ID_HEADER.encode(), _shown_id(call.request_id).encode()),
            (b"x-twinload-cache", call.trace.cache.encode()),
        ]
        if call.trace.attempts:
            headers.append((ATTEMPTS_HEADER.encode(), str(call.trace.attempts).encode()))
        if call.trace.instance:
            headers.append((b"x-twinload-instance", call.trace.instance.encode()))
        return headers

    async def chunk(self, chunk: Chunk) -> None:
        if not self._streaming:
            self._streaming = True
            await self._start(200, STREAM_HEADERS)
        await self._send({"type": "http.response.body", "body": chunk.data, "more_body": True})

    async def end(self) -> None:
        if not self._streaming:
            await self._start(200, STREAM_HEADERS)
        await self._send({"type": "http.response.body", "body": b""})

    async def whole(
        self, body: bytes, status: int = 200, extra: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [JSON_TYPE, length, *(extra or [])])
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: ServiceError) -> None:
        """The error as the API says it: a JSON body, or an `error` event once the stream has begun."""
        request_id = self._own_headers()[0][1].decode()
        body = msgspec.json.encode(error_document(error, request_id))
        if self._streaming:
            event = b"event: error\ndata: %b\n\n" % body
            await self._send({"type": "http.response.body", "body": event})
            return
        extra = [(OUTCOME_HEADER.encode(), error.outcome.encode())]
        if error.retry_after_s is not None:
            extra.append((b"retry-after", f"{error.retry_after_s:g}".encode()))
        await self.whole(body, error.status, extra)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, *self._own_headers()],
            }
        )


def _shown_id(request_id: int) -> str:
    return f"req_{request_id:016x}"


def request_ids() -> Iterator[int]:
    """Ids for requests that carry no tag: far above any compiled workload's rows, and apart between processes."""
    return itertools.count((1 << 62) + (secrets.randbits(30) << 30))


def _observability(metrics: ServiceMetrics, is_ready: Callable[[], bool]) -> list[Route]:
    """`/healthz` (the process answers), `/readyz` (it can take requests), `/metrics`."""

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        ready = is_ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def show_metrics(_request: Request) -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", show_metrics),
    ]


def instance_app(
    messages: MessagesEndpoint, metrics: ServiceMetrics, is_ready: Callable[[], bool]
) -> Starlette:
    """One instance as a service."""
    return Starlette(
        routes=[
            Route("/v1/messages", messages, methods=["POST"]),
            *_observability(metrics, is_ready),
        ],
        exception_handlers=routing_errors(messages.new_request_id),
    )


def gateway_app(
    messages: MessagesEndpoint,
    metrics: ServiceMetrics,
    is_ready: Callable[[], bool],
    *,
    on_heartbeat: Callable[[InstanceMetrics], bool],
    control_token: str,
    batches: BatchRoutes | None = None,
) -> Starlette:
    """The gateway as a service. Heartbeats of instances need the control token that they were started with."""
    decode = msgspec.json.Decoder(InstanceMetrics).decode

    async def heartbeat(request: Request) -> Response:
        given = request.headers.get(CONTROL_TOKEN_HEADER, "")
        if not hmac.compare_digest(given.encode(), control_token.encode()):
            return JSONResponse({"error": "wrong control token"}, 403)
        try:
            metrics_of_instance = decode(await request.body())
        except msgspec.DecodeError as error:
            return JSONResponse({"error": str(error)}, 400)
        expected = on_heartbeat(metrics_of_instance)
        return Response(status_code=204 if expected else 409)

    return Starlette(
        routes=[
            Route("/v1/messages", messages, methods=["POST"]),
            *([] if batches is None else batches.routes()),
            Route(HEARTBEAT_PATH, heartbeat, methods=["POST"]),
            *_observability(metrics, is_ready),
        ],
        exception_handlers=routing_errors(messages.new_request_id),
    )


if __name__ == "__main__":
    from reference_impl.live.main import main

    main()
