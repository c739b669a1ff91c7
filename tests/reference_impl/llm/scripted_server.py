"""A loopback HTTP server that speaks the Messages API and misbehaves on request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

__all__ = ["ScriptedServer", "event", "serving"]

USAGE = {"input_tokens": 12, "output_tokens": 3}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5",
    "content": [{"type": "text", "text": "one two three"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": USAGE,
}
ERROR_TYPES = {400: "invalid_request_error", 429: "rate_limit_error", 529: "overloaded_error"}


def event(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n".encode()


def error_body(kind: str) -> dict[str, Any]:
    return {
        "type": "error",
        "error": {"type": kind, "message": "on purpose"},
        "request_id": "req_7",
    }


class ScriptedServer:
    """Meets every request with `behaviour`: `answer`, an HTTP status, or the name of a fault.

    Attributes:
        requests: (headers, body) of all requests so far.
        in_flight: requests whose handler runs; `idle` is set while there are none.
        go_on: with `stepwise` set, a stream waits for it after each delta, and clears it.
    """

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self.headers: dict[str, str] = {}
        self.stepwise = False
        self.go_on = asyncio.Event()
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.idle.clear()
        try:
            body = await request.read()
            self.requests.append(({k.lower(): v for k, v in request.headers.items()}, body))
            return await self._answer(request, streamed=bool(json.loads(body).get("stream")))
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    async def _answer(self, request: web.Request, *, streamed: bool) -> web.StreamResponse:
        if self.behaviour.isdecimal():
            status = int(self.behaviour)
            return web.json_response(
                error_body(ERROR_TYPES.get(status, "api_error")),
                status=status,
                headers={"request-id": "req_7"} | self.headers,
            )
        if self.behaviour == "timeout":
            await asyncio.Event().wait()
        if self.behaviour == "drop_connection":
            self._abort(request)
        if not streamed or self.behaviour == "no_stream":
            return web.json_response(MESSAGE)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(
            event("message_start", message=MESSAGE | {"content": [], "stop_reason": None})
        )
        start = {"type": "text", "text": ""}
        await response.write(event("content_block_start", index=0, content_block=start))
        for word in ("one", " two", " three"):
            delta = {"type": "text_delta", "text": word}
            await response.write(event("content_block_delta", index=0, delta=delta))
            if self.stepwise:
                await self.go_on.wait()
                self.go_on.clear()
            if self.behaviour == "drop_stream":
                self._abort(request)
            if self.behaviour == "end_early":
                return response
            if self.behaviour == "error_in_stream":
                await response.write(b"event: error\ndata: %b\n\n" % json.dumps(
                    error_body("overloaded_error")).encode())  # fmt: skip
                return response
        await response.write(event("content_block_stop", index=0))
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        await response.write(event("message_delta", delta=end, usage={"output_tokens": 3}))
        await response.write(event("message_stop"))
        return response

    @staticmethod
    def _abort(request: web.Request) -> None:
        assert request.transport is not None
        request.transport.close()
        raise asyncio.CancelledError


@asynccontextmanager
async def serving(behaviour: str) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(behaviour)
    application = web.Application()
    application.router.add_post("/v1/messages", server.handle)
    runner = web.AppRunner(
        application, handler_cancellation=True, access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
