"""The port to an HTTP client: one POST, its answer pushed to a receiver.

Small, so that a network modelled in virtual time can stand behind the same parsing as sockets do (`http.py`). Push-style
like `MessagesPort`: when `post` returns or raises, nothing of the exchange is left open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["HttpTransport", "Receiver"]


class Receiver(Protocol):
    """Takes an answer as it arrives."""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Status and headers (looked up by lower-case names). An exception ends the exchange."""
        ...

    async def data(self, data: bytes) -> None:
        """Bytes of the body, cut anywhere; the next are read when this returns. An exception ends the exchange."""
        ...


class HttpTransport(Protocol):
    """An HTTP client bound to one peer."""

    async def post(
        self, path: str, headers: Mapping[str, str], body: bytes, receiver: Receiver
    ) -> None:
        """POST `body`; returns when the answer has ended.

        Raises ConnectionFailed when there is no connection or it is lost, RequestTimeout when the peer falls silent, and
        whatever the receiver raises. Unless the answer was read to its end, the connection is closed, so that the peer
        notices and stops its work; also on cancellation.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
