"""What a proxy reads from answers: usage, the reason of the end, errors, how long to wait."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reference_impl.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    RateLimited,
    Rejected,
    RequestTimeout,
    ServiceError,
    UpstreamFailed,
)
from reference_impl.llm.wire import (
    OUTCOME_HEADER,
    AnswerReader,
    completion_of_body,
    error_of_response,
    retry_after_s,
)
from reference_impl.messages import Usage


def event(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n".encode()


START = event("message_start", message={"usage": {"input_tokens": 12, "output_tokens": 1}})
DELTA = event("content_block_delta", delta={"type": "text_delta", "text": "hi"})
END = event("message_delta", delta={"stop_reason": "max_tokens"}, usage={"output_tokens": 7})
STOP = event("message_stop")


def error_body(kind: str, message: str = "why", **details: Any) -> bytes:
    error: dict[str, Any] = {"type": kind, "message": message}
    if details:
        error["details"] = details
    return json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()


def test_usage_is_cumulative_over_the_stream() -> None:
    reader = AnswerReader()
    for block in (START, DELTA, END, STOP):
        assert reader.read(block) == block
    completion = reader.completion()
    assert completion.usage == Usage(input_tokens=12, output_tokens=7)
    assert completion.stop_reason == "max_tokens"
    assert completion.size_bytes == len(START + DELTA + END + STOP)


def test_a_stream_that_ends_early_is_a_lost_connection() -> None:
    reader = AnswerReader()
    reader.read(START + DELTA)
    with pytest.raises(ConnectionFailed, match="before message_stop"):
        reader.completion()


def test_an_error_event_ends_the_block_before_it() -> None:
    reader = AnswerReader()
    failure = b"event: error\ndata: " + error_body("overloaded_error", "busy") + b"\n\n"
    assert reader.read(DELTA + failure) == DELTA
    assert isinstance(reader.error, Overloaded)
    assert (reader.error.message, reader.error.request_id) == ("busy", "req_1")


def test_a_text_that_speaks_of_errors_and_events_is_only_a_text() -> None:
    text = 'event: error\ndata: {"type":"message_stop"}\n\n'
    block = event("content_block_delta", delta={"type": "text_delta", "text": text})
    reader = AnswerReader()
    assert reader.read(block) == block
    assert reader.error is None
    assert not reader.finished


def test_an_event_that_cannot_be_read_is_the_peers_failure() -> None:
    with pytest.raises(UpstreamFailed, match="cannot be read"):
        AnswerReader().read(b"event: message_start\ndata: {\n\n")


def test_a_whole_answer_gives_its_usage_and_keeps_its_bytes() -> None:
    body = b'{"usage":{"input_tokens":3,"output_tokens":4,"cache_read_input_tokens":5},"stop_reason":null}'
    completion = completion_of_body(body)
    assert completion.usage == Usage(3, 4, cache_read_input_tokens=5)
    assert (completion.stop_reason, completion.body) == ("", body)


WRITTEN = {
    "input_tokens": 3,
    "output_tokens": 1,
    "cache_creation_input_tokens": 50,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 40},
}


def test_cache_writes_that_are_kept_for_an_hour_are_counted_apart() -> None:
    whole = completion_of_body(json.dumps({"usage": WRITTEN}).encode())
    assert whole.usage == Usage(3, 1, 50, 0, 40)
    reader = AnswerReader()
    for block in (event("message_start", message={"usage": WRITTEN}), DELTA, END, STOP):
        reader.read(block)
    assert reader.completion().usage == Usage(3, 7, 50, 0, 40), (
        "what an event does not repeat stays"
    )
    without = completion_of_body(b'{"usage":{"cache_creation":null}}')
    assert without.usage == Usage()


def test_an_answer_that_is_not_a_message_is_the_peers_failure() -> None:
    with pytest.raises(UpstreamFailed, match="not a message"):
        completion_of_body(b"<html>")


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, InvalidRequest, False),
        (401, AuthenticationFailed, False),
        (402, InvalidRequest, False),
        (403, PermissionDenied, False),
        (404, NotFound, False),
        (408, RequestTimeout, True),
        (409, InvalidRequest, True),
        (413, PayloadTooLarge, False),
        (429, RateLimited, True),
        (500, UpstreamFailed, True),
        (502, UpstreamFailed, True),
        (504, RequestTimeout, True),
        (529, Overloaded, True),
    ],
)
def test_each_status_has_its_error(status: int, kind: type[ServiceError], retryable: bool) -> None:
    error = error_of_response(status, {"request-id": "req_9"}, error_body("api_error"))
    assert type(error) is kind
    assert (error.status, error.retryable) == (status, retryable)
    assert (error.message, error.request_id) == ("why", "req_9")


def test_a_body_that_is_no_error_object_is_quoted_in_part() -> None:
    error = error_of_response(502, {}, b"<html>" + b"x" * 1000)
    assert error.message.startswith("HTTP 502: <html>xxx")
    assert len(error.message) < 250


def test_an_empty_body_still_says_the_status() -> None:
    assert error_of_response(503, {}, b"").message == "HTTP 503"


@pytest.mark.parametrize(("value", "status"), [("true", 400), ("false", 529)])
def test_the_peer_may_overrule_whether_to_retry(value: str, status: int) -> None:
    error = error_of_response(status, {"x-should-retry": value}, b"")
    assert error.retryable is (value == "true")


def test_a_spend_limit_is_not_worth_a_retry() -> None:
    body = error_body("rate_limit_error", error_code="enforced_spend_limit_reached")
    assert not error_of_response(429, {}, body).retryable


def test_an_instance_of_ours_names_the_outcome() -> None:
    headers = {OUTCOME_HEADER: "rejected"}
    error = error_of_response(529, headers, error_body("overloaded_error"), trust_outcome=True)
    assert isinstance(error, Rejected)
    assert (error.outcome, error.retryable, error.status) == ("rejected", False, 529)


def test_a_stranger_does_not_name_the_outcome() -> None:
    error = error_of_response(529, {OUTCOME_HEADER: "rejected"}, error_body("overloaded_error"))
    assert error.outcome == "overloaded"


DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "99"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": DATE}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:00:00 GMT", "date": DATE}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30", "date": DATE}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon", "date": DATE}, None),
    ],
)
def test_the_wait_that_the_peer_asks_for(headers: dict[str, str], expected_s: float | None) -> None:
    assert retry_after_s(headers) == expected_s


def test_the_wait_travels_with_the_error() -> None:
    assert error_of_response(429, {"retry-after": "7"}, b"").retry_after_s == 7.0
