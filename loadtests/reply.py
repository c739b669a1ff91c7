"""One answer as a client sees it: which outcome, when its first token came, how many tokens it used.

Truth about the first token needs care: reading by blocks of a fixed size waits for bytes that the server has not sent
(half again the true time to first token with a block of 1 KB). So the bytes are looked at as they arrive, line by line,
and the `event:` line of the first `content_block_delta` is the first token. Only `message_start`, `message_delta` and
`error` are parsed; the rest of a stream is counted, not decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, cast

import msgspec

from reference_impl.errors import error_for_status
from reference_impl.llm.wire import OUTCOME_HEADER
from reference_impl.telemetry import OUTCOMES, Outcome

__all__ = ["BadReply", "Reply", "ReplyReader"]

MAX_LINE_BYTES: Final = 1 << 20
MAX_BODY_BYTES: Final = 64 << 20

# Our gateway tells its own refusals from an endpoint's: both are 529 otherwise.
_OUTCOME_HEADER: Final = OUTCOME_HEADER.encode()
_STATUS_OF_ERROR: Final = {
    "rate_limit_error": 429,
    "overloaded_error": 529,
    "timeout_error": 504,
    "api_error": 500,
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
}


class BadReply(Exception):
    """The peer sent something that is not an answer: a line or body beyond all bounds."""


class Reply(msgspec.Struct, kw_only=True):
    """How one call ended. Instants are on the monotonic clock; NaN where nothing came.

    `retry_after_s` is what the peer asked for, or None. `detail` is one line for people, "" if all went well.
    """

    outcome: Outcome = "connection_error"
    status: int = 0
    first_token_at: float = math.nan
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    received_bytes: int = 0
    retry_after_s: float | None = None
    detail: str = ""


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int | None = 0
    cache_creation_input_tokens: int | None = 0


class _Started(msgspec.Struct):
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _MessageStart(msgspec.Struct):
    message: _Started = msgspec.field(default_factory=_Started)


class _MessageDelta(msgspec.Struct):
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


_decode_start = msgspec.json.Decoder(_MessageStart).decode
_decode_delta = msgspec.json.Decoder(_MessageDelta).decode
_decode_message = msgspec.json.Decoder(_Started).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode


class ReplyReader:
    """Callbacks for an `httptools.HttpResponseParser`; `finished(...)` gives the `Reply`.

    Feed it through the parser; `complete` turns true with the last byte of the response. Raises BadReply beyond
    1 MiB a line or 64 MiB a body.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.reply = Reply()
        self.started = False  # a status line was read
        self.complete = False
        self.keep_alive = True
        self._clock = clock
        self._is_stream = False
        self._tail = b""
        self._event = b""
        self._stopped = False
        self._stream_error: _Error | None = None
        self._outcome_header = ""
        self._body: list[bytes] = []

    # Callbacks of the parser, by the names that httptools looks for.

    def on_headers_complete(self) -> None:
        self.started = True

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._is_stream = value.startswith(b"text/event-stream")
        elif name == b"retry-after":
            self.reply.retry_after_s = _seconds(value)
        elif name == b"connection":
            self.keep_alive = value.lower() != b"close"
        elif name == _OUTCOME_HEADER:
            self._outcome_header = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        reply = self.reply
        reply.received_bytes += len(data)
        if self._is_stream:
            self._read_lines(data)
            return
        if reply.received_bytes > MAX_BODY_BYTES:
            raise BadReply(f"a body of more than {MAX_BODY_BYTES} bytes")
        self._body.append(data)

    def on_message_complete(self) -> None:
        self.complete = True

    def _read_lines(self, data: bytes) -> None:
        *lines, self._tail = (self._tail + data).split(b"\n")
        if len(self._tail) > MAX_LINE_BYTES:
            raise BadReply(f"an event line of more than {MAX_LINE_BYTES} bytes")
        reply = self.reply
        for line in lines:
            if line.startswith(b"event:"):
                event = self._event = line[6:].strip()
                if event == b"content_block_delta":
                    if math.isnan(reply.first_token_at):
                        reply.first_token_at = self._clock()
                elif event == b"message_stop":
                    self._stopped = True
            elif line.startswith(b"data:") and self._event in _READ_EVENTS:
                self._read_data(line[5:])

    def _read_data(self, data: bytes) -> None:
        reply = self.reply
        try:
            if self._event == b"message_start":
                self._count(_decode_start(data).message.usage)
            elif self._event == b"message_delta":
                reply.output_tokens = _decode_delta(data).usage.output_tokens
            else:
                self._stream_error = _decode_error(data).error
        except msgspec.DecodeError as error:
            self._stream_error = _Error("api_error", f"unreadable {self._event.decode()}: {error}")

    def _count(self, usage: _Usage) -> None:
        reply = self.reply
        read = usage.cache_read_input_tokens or 0
        reply.input_tokens = usage.input_tokens + read + (usage.cache_creation_input_tokens or 0)
        reply.cached_tokens = read
        reply.output_tokens = usage.output_tokens

    def finished(self, status: int, lost: str = "") -> Reply:
        """The answer, after the last byte (`lost` empty) or after the connection was lost (`lost` says how)."""
        reply = self.reply
        reply.status = status
        if lost or not self.complete:
            broken = not math.isnan(reply.first_token_at)
            reply.outcome = "stream_broken" if broken else "connection_error"
            reply.detail = lost or "the connection closed before the end of the answer"
        elif status >= 400:
            self._failed(status)
        elif self._is_stream:
            self._streamed()
        else:
            self._whole()
        return reply

    def _streamed(self) -> None:
        reply = self.reply
        error = self._stream_error
        if error is None and self._stopped:
            reply.outcome = "ok"
        elif not math.isnan(reply.first_token_at):
            reply.outcome = "stream_broken"
            reply.detail = error.message if error else "the stream ended without message_stop"
        elif error is not None:
            failure = error_for_status(_STATUS_OF_ERROR.get(error.type, 500), error.message)
            reply.outcome = failure.outcome
            reply.detail = f"{error.type}: {error.message}"
        else:
            reply.outcome = "connection_error"
            reply.detail = "the stream ended before its first event"

    def _whole(self) -> None:
        reply = self.reply
        try:
            self._count(_decode_message(b"".join(self._body)).usage)
        except msgspec.DecodeError as error:
            reply.outcome = "server_error"
            reply.detail = f"unreadable answer: {error}"
        else:
            reply.outcome = "ok"
            # A whole answer delivers its first token with its last.
            reply.first_token_at = self._clock()

    def _failed(self, status: int) -> None:
        reply = self.reply
        try:
            error = _decode_error(b"".join(self._body)).error
        except msgspec.DecodeError:
            error = _Error()
        failure = error_for_status(status, error.message)
        reply.outcome = failure.outcome
        if self._outcome_header in OUTCOMES:
            reply.outcome = cast("Outcome", self._outcome_header)
        reply.detail = f"{status} {error.type}: {error.message}"[:300]


_READ_EVENTS: Final = frozenset({b"message_start", b"message_delta", b"error"})


def _seconds(value: bytes) -> float | None:
    """`retry-after` in seconds; a date or nonsense is None."""
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86_400 else None
