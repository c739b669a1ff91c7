"""uvicorn's protocol with two hooks that ASGI lacks: to be told at once that the client left, and to cut a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["CONNECTION", "MockProtocol"]

# Key of the scope under which a request finds its connection.
CONNECTION = "mock.connection"


class MockProtocol(HttpToolsProtocol):
    """One connection. `on_lost` is called when the peer closes it while a request is being served."""

    on_lost: Callable[[], Any] | None = None

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
