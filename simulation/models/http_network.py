"""HTTP over a modelled network: an ASGI application behind a link, as an `HttpTransport`.

The fast virtual world hands calls from hop to hop as objects. This one carries the bytes: the same application, parsing and
framing that a live process runs, in virtual time. It costs several times as much, so it serves to check that both tell the
same story, and to test services without waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from reference_impl.errors import ConnectionFailed
from reference_impl.llm.transport import Receiver
from reference_impl.messages import TAG_HEADER, RequestTag
from simulation.models.network import Link

__all__ = ["AsgiApp", "AsgiTransport"]

Message = MutableMapping[str, Any]
AsgiApp = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

_UNTAGGED: Final = RequestTag(request_id=0)


class AsgiTransport:
    """Requests to `app` over `link`. Closing it cuts off what is still being served.

    `connection_key`: the key of the scope under which an application finds its connection, to cut it (`cut()`) or to be
    told that the peer left (`on_lost`), where it needs what ASGI lacks.
    """

    def __init__(self, app: AsgiApp, link: Link, connection_key: str | None = None) -> None:
        self._app = app
        self._link = link
        self._connection_key = connection_key
        self._loop = asyncio.get_running_loop()
        # A dict, not a set: iterated in the order of creation.
        self._serving: dict[asyncio.Task[None], None] = {}

    async def post(
        self, path: str, headers: Mapping[str, str], body: bytes, receiver: Receiver
    ) -> None:
        """See HttpTransport. Leaving early (an exception, a cancellation) disconnects, as a closed socket does."""
        tag_text = headers.get(TAG_HEADER)
        tag = RequestTag.decode(tag_text) if tag_text else _UNTAGGED
        latency_s = self._link.latency_s(tag, 0)
        connection = _Connection(self._loop, body, latency_s)
        if latency_s > 0.0:
            await asyncio.sleep(latency_s)
        scope = _scope(path, headers)
        if self._connection_key is not None:
            scope[self._connection_key] = connection
        server = self._loop.create_task(
            self._serve(scope, connection), name=f"background:serve {path}"
        )
        self._serving[server] = None
        server.add_done_callback(self._served)
        try:
            start = await connection.next_message()
            answer_headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]
            }
            receiver.head(start["status"], answer_headers)
            more = True
            while more:
                message = await connection.next_message()
                more = message.get("more_body", False)
                if message.get("body"):
                    await receiver.data(message["body"])
        finally:
            connection.disconnect()

    async def aclose(self) -> None:
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, scope: Message, connection: _Connection) -> None:
        try:
            await self._app(scope, connection.receive, connection.send)
        finally:
            connection.hang_up()

    def _served(self, task: asyncio.Task[None]) -> None:
        del self._serving[task]


class _Connection:
    """One exchange: what the server sends arrives at the client a latency later, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, body: bytes, latency_s: float) -> None:
        self._loop = loop
        self._latency_s = latency_s
        self._request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._disconnected = loop.create_future()
        self._arriving: deque[tuple[float, Message | None]] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._over = False
        self.on_lost: Callable[[], Any] | None = None

    # The server's side.

    async def receive(self) -> Message:
        if self._request:
            return self._request.pop()
        await asyncio.shield(self._disconnected)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if (
            not self._over and not self._disconnected.done()
        ):  # else it goes to nobody, as into a closed socket
            self._put(message)

    def hang_up(self) -> None:
        """The server's end of the exchange."""
        if not self._over:
            self._over = True
            self._put(None)

    cut = hang_up

    def _put(self, message: Message | None) -> None:
        self._arriving.append((self._loop.time() + self._latency_s, message))
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # The client's side.

    async def next_message(self) -> Message:
        """The next message of the server. Raises ConnectionFailed when the server ended without it."""
        while not self._arriving:
            self._arrival = self._loop.create_future()
            await self._arrival
        arrives_s, message = self._arriving.popleft()
        if arrives_s > self._loop.time():
            await asyncio.sleep(arrives_s - self._loop.time())
        if message is None:
            raise ConnectionFailed("the peer closed the connection before its answer was complete")
        return message

    def disconnect(self) -> None:
        if not self._disconnected.done():
            self._disconnected.set_result(None)
            if not self._over and self.on_lost is not None:
                self.on_lost()


def _scope(path: str, headers: Mapping[str, str]) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
    }
