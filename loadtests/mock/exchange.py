"""One HTTP exchange: the request's headers and body as the routes want them, and the ways to answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from loadtests.mock.protocol import CONNECTION, MockProtocol
from reference_impl.errors import InvalidRequest, PayloadTooLarge, ServiceError
from simulation.models.endpoint.wire import error_body

__all__ = ["Exchange", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

_JSON: Final = (b"content-type", b"application/json")
_MEGABYTE: Final = 1024 * 1024


class Exchange:
    """A request and its answer; every answer carries the request's id."""

    __slots__ = (
        "_receive",
        "_send",
        "connection",
        "headers",
        "method",
        "path",
        "request_id",
        "scope",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        # Later duplicates win, as in most servers.
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id
        self.connection: MockProtocol = scope[CONNECTION]
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> str:
        """A header's value as text; "" if it was not sent."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def beta(self) -> bool:
        """Whether the client asked for leniency towards unknown fields."""
        return b"anthropic-beta" in self.headers or b"beta=true" in self.scope["query_string"]

    def query(self) -> dict[str, str]:
        """The query string, last value of each name."""
        text = self.scope["query_string"].decode("latin-1")
        return {name: values[-1] for name, values in parse_qs(text).items()}

    async def body(self, limit_megabytes: int) -> bytes:
        """The whole body; raises PayloadTooLarge beyond the limit, before it was read."""
        limit = limit_megabytes * _MEGABYTE
        length = self.headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise PayloadTooLarge(f"Request exceeds the maximum size of {limit_megabytes} MB")
        message = await self._receive()
        data: bytes = message.get("body", b"")
        if not message.get("more_body"):
            return data
        parts, size = [data], len(data)
        while message.get("more_body"):
            message = await self._receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise PayloadTooLarge(f"Request exceeds the maximum size of {limit_megabytes} MB")
        return b"".join(parts)

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of an answer."""
        head = [(b"request-id", self.request_id.encode()), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": head})

    async def more(self, data: bytes) -> None:
        """Send a part of the body, at once."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """The body is complete."""
        await self._send({"type": "http.response.body", "body": b""})

    async def reply(
        self,
        status: int,
        body: bytes,
        headers: Headers = (),
        content_type: tuple[bytes, bytes] = _JSON,
    ) -> None:
        """Send a whole answer."""
        length = (b"content-length", b"%d" % len(body))
        await self.start(status, [content_type, length, *headers])
        await self._send({"type": "http.response.body", "body": body})

    async def reply_json(self, document: Any) -> None:
        await self.reply(200, msgspec.json.encode(document))

    async def refuse(self, error: ServiceError, headers: Headers = ()) -> None:
        """Send an error in the API's shape."""
        details = getattr(error, "details", None)
        body = error_body(error.error_type, error.message, self.request_id, details)
        extra = list(headers)
        if error.retry_after_s is not None:
            extra.append((b"retry-after", b"%g" % error.retry_after_s))
        if error.status == 413:
            extra.append((b"connection", b"close"))  # the rest of the body was not read
        await self.reply(error.status, body, extra)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A number of the query string; raises InvalidRequest outside its bounds."""
        text = self.query().get(name)
        if text is None:
            return default
        if not text.isdecimal() or not low <= int(text[:9]) <= high:
            raise InvalidRequest(f"{name}: Input should be an integer from {low} to {high}")
        return int(text)
