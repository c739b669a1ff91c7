"""The Messages API on the wire, as far as a proxy reads it: usage, why an answer ended, and errors."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from reference_impl.errors import (
    ConnectionFailed,
    EndpointUnreachable,
    Overloaded,
    RateLimited,
    Rejected,
    RequestTimeout,
    ServiceError,
    StreamBroken,
    UpstreamFailed,
    error_for_status,
)
from reference_impl.llm.sse import split_events
from reference_impl.messages import Completion, Usage

__all__ = [
    "ATTEMPTS_HEADER",
    "OUTCOME_HEADER",
    "AnswerReader",
    "completion_of_body",
    "error_of_response",
    "retry_after_s",
]

# Set by our own instances on errors, so that a gateway records the outcome that the instance saw: 529 alone does not tell a
# full queue of ours from the provider's overload.
OUTCOME_HEADER: Final = "x-twinload-outcome"
# Set by our own instances on every answer: upstream calls made for it, so that a gateway's ledger knows what retries cost.
ATTEMPTS_HEADER: Final = "x-twinload-attempts"

_ERROR_OF_OUTCOME: Final[dict[str, type[ServiceError]]] = {
    kind.outcome: kind
    for kind in (
        EndpointUnreachable,
        Overloaded,
        RateLimited,
        Rejected,
        RequestTimeout,
        StreamBroken,
        UpstreamFailed,
    )
}

# `error.type` -> HTTP status (Messages API, "Errors").
_STATUS_OF_TYPE: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None


class _Message(msgspec.Struct):
    usage: _Usage
    stop_reason: str | None = None


class _MessageStart(msgspec.Struct):
    message: _Message


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class _MessageDelta(msgspec.Struct):
    delta: _Delta
    usage: _Usage | None = None


class _ErrorDetails(msgspec.Struct):
    error_code: str | None = None


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""
    details: _ErrorDetails | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error
    request_id: str | None = None


_message = msgspec.json.Decoder(_Message)
_message_start = msgspec.json.Decoder(_MessageStart)
_message_delta = msgspec.json.Decoder(_MessageDelta)
_error_body = msgspec.json.Decoder(_ErrorBody)


def _usage_of(usage: _Usage, before: Usage) -> Usage:
    """Counts are cumulative; an event repeats only some of them."""
    written_1h = None
    if usage.cache_creation is not None:
        written_1h = usage.cache_creation.ephemeral_1h_input_tokens
    return Usage(
        before.input_tokens if usage.input_tokens is None else usage.input_tokens,
        before.output_tokens if usage.output_tokens is None else usage.output_tokens,
        before.cache_creation_input_tokens
        if usage.cache_creation_input_tokens is None
        else usage.cache_creation_input_tokens,
        before.cache_read_input_tokens
        if usage.cache_read_input_tokens is None
        else usage.cache_read_input_tokens,
        before.cache_creation_1h_input_tokens if written_1h is None else written_1h,
    )


def completion_of_body(body: bytes) -> Completion:
    """The completion of an answer that was not streamed. Raises UpstreamFailed if it is not a message."""
    try:
        message = _message.decode(body)
    except msgspec.DecodeError as error:
        raise UpstreamFailed(f"the answer is not a message: {error}") from error
    return Completion(
        usage=_usage_of(message.usage, Usage()),
        stop_reason=message.stop_reason or "",
        body=body,
        size_bytes=len(body),
    )


class AnswerReader:
    """Reads along a streamed answer, in blocks of whole events.

    Attributes:
        usage, stop_reason: as of the last block. finished: `message_stop` was seen.
        error: the stream's own `error` event, translated; the events before it are valid.
    """

    __slots__ = ("error", "finished", "size_bytes", "stop_reason", "usage")

    def __init__(self) -> None:
        self.usage = Usage()
        self.stop_reason = ""
        self.finished = False
        self.error: ServiceError | None = None
        self.size_bytes = 0

    def read(self, block: bytes) -> bytes:
        """The part of `block` to pass on: all of it, or what precedes an error event."""
        # Most blocks are text deltas: two searches tell them from those that have something to read. A text that
        # contains such a word costs a look at its events, nothing else.
        if b"message_" in block or b"error" in block:
            block = self._read_events(block)
        self.size_bytes += len(block)
        return block

    def _read_events(self, block: bytes) -> bytes:
        try:
            for event in split_events(block):
                match event.name:
                    case "message_start":
                        self.usage = _usage_of(
                            _message_start.decode(event.data).message.usage, self.usage
                        )
                    case "message_delta":
                        change = _message_delta.decode(event.data)
                        self.stop_reason = change.delta.stop_reason or self.stop_reason
                        if change.usage is not None:
                            self.usage = _usage_of(change.usage, self.usage)
                    case "message_stop":
                        self.finished = True
                    case "error":
                        self.error = _error_of_event(event.data)
                        return block[: event.start]
        except msgspec.DecodeError as error:
            raise UpstreamFailed(f"the stream has an event that cannot be read: {error}") from error
        return block

    def completion(self) -> Completion:
        """What the stream amounted to. Raises ConnectionFailed if it ended before `message_stop`."""
        if not self.finished:
            raise ConnectionFailed("the stream ended before message_stop")
        return Completion(
            usage=self.usage, stop_reason=self.stop_reason, size_bytes=self.size_bytes
        )


def _error_of_event(data: bytes) -> ServiceError:
    body = _error_body.decode(data)
    status = _STATUS_OF_TYPE.get(body.error.type, 500)
    message = body.error.message or body.error.type or "error event without a message"
    return error_for_status(status, message, request_id=body.request_id or "")


def error_of_response(
    status: int, headers: Mapping[str, str], body: bytes, *, trust_outcome: bool = False
) -> ServiceError:
    """The error that an HTTP answer (status >= 400) stands for.

    Args:
        headers: looked up by lower-case names.
        body: as much of it as was read; need not be an error body of the Messages API.
        trust_outcome: the peer is an instance of ours, whose `x-twinload-outcome` names the outcome.
    """
    try:
        parsed = _error_body.decode(body)
    except msgspec.DecodeError:
        # Proxies on the way answer with HTML or nothing at all: say what came.
        text = body[:200].decode(errors="replace").strip()
        parsed = _ErrorBody(_Error(message=f"HTTP {status}: {text}" if text else f"HTTP {status}"))
    message = parsed.error.message or f"HTTP {status}"
    wait_s = retry_after_s(headers)
    request_id = headers.get("request-id") or parsed.request_id or ""
    kind = _ERROR_OF_OUTCOME.get(headers.get(OUTCOME_HEADER, "")) if trust_outcome else None
    if kind is None:
        error = error_for_status(status, message, retry_after_s=wait_s, request_id=request_id)
    else:
        error = kind(message, status=status, retry_after_s=wait_s, request_id=request_id)
    should_retry = headers.get("x-should-retry")
    if should_retry in ("true", "false"):
        error.retryable = should_retry == "true"
    details = parsed.error.details
    if details is not None and details.error_code == "enforced_spend_limit_reached":
        error.retryable = False  # a 429 that time does not heal
    return error


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the peer asks to wait: `retry-after-ms`, else `retry-after` in seconds or as an HTTP date.

    A date is taken against the answer's own `date` header: the difference of two readings of the peer's clock needs none
    of ours. None if there is neither, or nothing that can be read.
    """
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            wait_s = float(text) * unit_s
        except ValueError:
            if unit_s != 1.0:
                continue
            wait_s = _seconds_between(headers.get("date"), text)
        if 0 <= wait_s < 1e9:
            return wait_s
    return None


def _seconds_between(start: str | None, end: str) -> float:
    """Seconds from one HTTP date to another, at least 0; NaN if either is missing or malformed."""
    try:
        passed = parsedate_to_datetime(end) - parsedate_to_datetime(start or "")
    except (ValueError, TypeError):
        return float("nan")
    return max(0.0, passed.total_seconds())
