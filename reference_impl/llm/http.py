"""The Messages API over plain HTTP: the call's own bytes go out, the answer's own bytes come back.

Measured, the client costs more than the framework around it (raw aiohttp a tenth of the SDK's CPU), so the path from
gateway to instance and from instance to endpoint parses what accounting needs and nothing else. Knows no client library
and no loop: a transport brings the bytes (`transport.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from reference_impl.errors import ServiceError, StreamBroken, UpstreamFailed
from reference_impl.llm.sse import EventTooLong, SseFramer
from reference_impl.llm.transport import HttpTransport
from reference_impl.llm.wire import (
    ATTEMPTS_HEADER,
    AnswerReader,
    completion_of_body,
    error_of_response,
)
from reference_impl.messages import TAG_HEADER, Call, Chunk, Completion, Emit

__all__ = ["HttpMessages"]

_PATH = "/v1/messages"
_MAX_ERROR_BYTES = 64 * 1024


class HttpMessages:
    """A MessagesPort to a peer that speaks the Messages API over HTTP.

    Args:
        transport: closed by `aclose`.
        api_key: sent as `x-api-key`; "" sends none.
        version: `anthropic-version`. 2023-06-01 accepts the bodies of every client; 2026-10-21 refuses `temperature`.
            "" sends none (the transport does).
        forward_tags: send `x-twinload-request`, with the present attempt, to a peer that is ours or a mock. Never to a
            real provider.
        trust_outcome: the peer is one of our instances; see `wire.error_of_response`.
        max_body_bytes: the longest answer that is not streamed.
        max_event_bytes: the longest event of a stream.
    """

    def __init__(
        self,
        transport: HttpTransport,
        *,
        api_key: str = "",
        version: str = "2023-06-01",
        forward_tags: bool = False,
        trust_outcome: bool = False,
        max_body_bytes: int = 64 * 1024 * 1024,
        max_event_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        self._transport = transport
        self._headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
        }
        if version:
            self._headers["anthropic-version"] = version
        if api_key:
            self._headers["x-api-key"] = api_key
        self._forward_tags = forward_tags
        self._trust_outcome = trust_outcome
        self._max_body_bytes = max_body_bytes
        self._max_event_bytes = max_event_bytes

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        """See MessagesPort. A streamed answer's completion has no body: its bytes went through `emit`."""
        headers = self._headers
        tag = call.tag
        if self._forward_tags and tag is not None:
            if tag.attempt != call.attempt:
                tag = msgspec.structs.replace(tag, attempt=call.attempt)
            headers = {**headers, TAG_HEADER: tag.encode()}
        if call.stream:
            answer: _StreamedAnswer | _WholeAnswer = _StreamedAnswer(
                emit, SseFramer(self._max_event_bytes)
            )
        else:
            answer = _WholeAnswer(self._max_body_bytes)
        try:
            await self._transport.post(_PATH, headers, call.body, answer)
            if self._trust_outcome:
                attempts = answer.headers.get(ATTEMPTS_HEADER, "")
                call.trace.attempts += int(attempts) if attempts.isdecimal() else 0
            if answer.status >= 400:
                raise error_of_response(
                    answer.status,
                    answer.headers,
                    bytes(answer.collected),
                    trust_outcome=self._trust_outcome,
                )
            return answer.completion()
        except ServiceError as error:
            if answer.content_emitted and not isinstance(error, StreamBroken):
                raise StreamBroken(
                    f"broken after its first content: {error.message}",
                    request_id=error.request_id or answer.headers.get("request-id", ""),
                ) from error
            raise

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Answer:
    """What whole and streamed answers have in common: status, headers, and an error's body."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.collected = bytearray()
        self.content_emitted = False

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers
        if status < 200 or 300 <= status < 400:
            raise UpstreamFailed(f"unexpected HTTP status {status}", retryable=False)

    def _collect_error(self, data: bytes) -> None:
        # Enough to say what happened; the rest is read past, so that the connection stays usable.
        self.collected += data[: _MAX_ERROR_BYTES - len(self.collected)]


class _WholeAnswer(_Answer):
    """An answer in one JSON body."""

    def __init__(self, max_body_bytes: int) -> None:
        super().__init__()
        self._max_body_bytes = max_body_bytes

    async def data(self, data: bytes) -> None:
        if self.status >= 400:
            self._collect_error(data)
            return
        self.collected += data
        if len(self.collected) > self._max_body_bytes:
            raise UpstreamFailed(
                f"the answer is longer than {self._max_body_bytes} bytes", retryable=False
            )

    def completion(self) -> Completion:
        return completion_of_body(bytes(self.collected))


class _StreamedAnswer(_Answer):
    """An answer in server-sent events, passed on in blocks as they arrive."""

    def __init__(self, emit: Emit | None, framer: SseFramer) -> None:
        super().__init__()
        self._emit = emit
        self._framer = framer
        self._reader = AnswerReader()

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        super().head(status, headers)
        kind = headers.get("content-type", "")
        if status < 400 and not kind.startswith("text/event-stream"):
            raise UpstreamFailed(f"asked for a stream, got content-type {kind!r}", retryable=False)

    async def data(self, data: bytes) -> None:
        if self.status >= 400:
            self._collect_error(data)
            return
        try:
            block = self._framer.feed(data)
        except EventTooLong as error:
            raise UpstreamFailed(str(error), retryable=False) from error
        if not block:
            return
        block = self._reader.read(block)
        if block and self._emit is not None:
            content = b"content_block_delta" in block
            self.content_emitted = self.content_emitted or content
            await self._emit(Chunk(block, content))
        if self._reader.error is not None:
            raise self._reader.error

    def completion(self) -> Completion:
        return self._reader.completion()
