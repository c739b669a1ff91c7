"""The least that an ASGI application can do: reads the body, answers with a constant, whole or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from reference_impl.live.loop import run_live
from reference_impl.live.serving import announce, serving, stop_on_signals

_ANSWER = b'{"type":"message","content":[{"type":"text","text":"%s"}]}' % (b"abc " * 50)
_EVENT = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"abc "}}\n\n'
)


async def app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    message = await receive()
    body: bytes = message["body"]
    while message["more_body"]:
        message = await receive()
        body += message["body"]
    if b'"stream":true' in body:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(100):
            await asyncio.sleep(0)  # each event is flushed on its own
            await send({"type": "http.response.body", "body": _EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    length = (b"content-length", b"%d" % len(_ANSWER))
    headers = [(b"content-type", b"application/json"), length]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _ANSWER})


async def _main() -> None:
    stop = stop_on_signals()
    async with serving(app, 0) as url:
        announce(url)
        await stop.wait()


if __name__ == "__main__":
    run_live(_main())
