"""A real server in a process of its own, small enough to be beyond doubt: it answers every Messages request alike.

`python -m tests.loadtests.tiny_server [options]` prints a ready line; `GET /seen` lists the request ids that it has answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from typing import Any

import uvicorn

EVENTS = (
    (
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":'
        b'{"input_tokens":7,"output_tokens":1,"cache_read_input_tokens":3}}}\n\n'
        b"event: ping\ndata: {}\n\n"
    ),
    b'event: content_block_start\ndata: {"index":0}\n\n',
    b'event: content_block_delta\ndata: {"index":0,"delta":{"type":"text_delta","text":"a"}}\n\n',
    b'event: content_block_delta\ndata: {"index":0,"delta":{"type":"text_delta","text":"b"}}\n\n',
    b'event: message_delta\ndata: {"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
MESSAGE = b'{"type":"message","content":[],"usage":{"input_tokens":10,"output_tokens":5}}'


class Application:
    """Answers after `first_s`, streams the rest over `stream_s`; the whole process stands still once, if asked to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seen: list[dict[str, str]] = []
        self.began_s: float | None = None
        self.refusals_left = options.refuse
        self.stall_left_s = options.stall_s

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/seen":
            await self.answer(send, 200, json.dumps(self.seen).encode())
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if body == b"{}":  # the question before a run, which is none of its requests
            await self.answer(send, 400, b'{"error":{"type":"invalid_request_error"}}')
            return
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.seen.append(
            {"tag": headers.get("x-twinload-request", ""), "key": headers.get("x-api-key", "")}
        )
        self.stall()
        if self.refusals_left:
            self.refusals_left -= 1
            error = b'{"error":{"type":"rate_limit_error","message":"slow down"}}'
            retry_after = (b"retry-after", self.options.retry_after.encode())
            await self.answer(send, 429, error, [retry_after])
            return
        await asyncio.sleep(self.options.first_s)
        if json.loads(body)["stream"]:
            await self.stream(send)
        else:
            await self.answer(send, 200, MESSAGE)

    def stall(self) -> None:
        """Stand still for `stall_s`, once, `stall_at_s` after the first request."""
        now = time.monotonic()
        self.began_s = self.began_s or now
        if self.stall_left_s and now - self.began_s >= self.options.stall_at_s:
            stall_s, self.stall_left_s = self.stall_left_s, 0.0
            time.sleep(stall_s)

    async def stream(self, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200}
        await send(start | {"headers": [(b"content-type", b"text/event-stream")]})
        for event in EVENTS:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            if event.startswith(b"event: content_block_delta"):
                await asyncio.sleep(self.options.stream_s / 2)
        await send({"type": "http.response.body", "body": b""})

    async def answer(
        self, send: Any, status: int, body: bytes, extra: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        headers = [(b"content-length", str(len(body)).encode()), *(extra or [])]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first-s", type=float, default=0.0)
    parser.add_argument("--stream-s", type=float, default=0.0)
    parser.add_argument("--stall-at-s", type=float, default=0.0)
    parser.add_argument("--stall-s", type=float, default=0.0)
    parser.add_argument("--refuse", type=int, default=0, help="429 for so many requests first")
    parser.add_argument("--retry-after", default="0.2")
    options = parser.parse_args()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    config = uvicorn.Config(
        Application(options), http="httptools", log_level="warning", lifespan="off", backlog=4096
    )
    sys.stdout.write(json.dumps({"ready": f"http://127.0.0.1:{listener.getsockname()[1]}"}) + "\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
