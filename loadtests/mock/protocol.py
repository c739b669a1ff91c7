"""uvicorn's protocol with two hooks that ASGI lacks: to be told at once that the client left, and to cut a connection.

And the head of an answer leaves with the first bytes of its body, in one system call: uvicorn writes them one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["CONNECTION", "MockProtocol"]

# Key of the scope under which a request finds its connection.
CONNECTION = "mock.connection"


class _HeadWithBody:
    """A transport that keeps the head of an answer until the write after it; what it does not know is the transport's."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            self._transport.write(self._head + data)
            self._head = b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100"):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send a head that no body follows."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class MockProtocol(HttpToolsProtocol):
    """One connection. `on_lost` is called when the peer closes it while a request is being served."""

    on_lost: Callable[[], Any] | None = None

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        self._joined = _HeadWithBody(transport)
        self.transport = cast("asyncio.Transport", self._joined)

    def on_response_complete(self) -> None:
        self._joined.flush()  # the answer to HEAD
        super().on_response_complete()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[CONNECTION] = self

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def cut(self) -> None:
        """Close the connection at once, in the middle of whatever is being said."""
        self.cycle.disconnected = True  # or uvicorn complains of an answer without an end
        self.transport.abort()
