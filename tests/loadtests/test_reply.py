"""What a client makes of the bytes of an answer."""

from __future__ import annotations

import math
from collections.abc import Iterable

import httptools
import pytest

from loadtests.reply import MAX_LINE_BYTES, BadReply, Reply, ReplyReader
from reference_impl.telemetry import Outcome
from tests.loadtests.tiny_server import EVENTS, MESSAGE

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Clock:
    """Each reading is one second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def chunked(parts: Iterable[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def read(*pieces: bytes, lost: str = "") -> Reply:
    """The reply to bytes that come in `pieces`, one a second."""
    clock = Clock()
    reader = ReplyReader(clock)
    parser = httptools.HttpResponseParser(reader)
    for piece in pieces:
        parser.feed_data(piece)
        clock.now += 1.0
    return reader.finished(parser.get_status_code() if reader.started else 0, lost)


def whole_stream(events: Iterable[bytes] = EVENTS) -> bytes:
    return STREAM_HEAD + chunked(events) + b"0\r\n\r\n"


def failed(status: int, body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 %d x\r\n%bcontent-length: %d\r\n\r\n%b" % (status, lines, len(body), body)


def test_a_whole_stream_is_ok_with_the_tokens_of_its_last_count() -> None:
    reply = read(whole_stream())
    assert (reply.outcome, reply.status) == ("ok", 200)
    assert (reply.input_tokens, reply.cached_tokens, reply.output_tokens) == (10, 3, 5)
    assert reply.received_bytes == sum(map(len, EVENTS))


def test_the_first_token_is_the_first_content_event_not_the_first_byte() -> None:
    pieces = [STREAM_HEAD, *(chunked([event]) for event in EVENTS), b"0\r\n\r\n"]
    reply = read(*pieces)
    # head 0, message_start 1, content_block_start 2, first content_block_delta 3
    assert reply.first_token_at == 3.0


def test_the_event_line_alone_is_the_first_token_before_its_data_has_come() -> None:
    event = b"event: content_block_delta\n"
    assert read(STREAM_HEAD, chunked([event]), lost="reset").first_token_at == 1.0


def test_any_cut_of_the_bytes_gives_the_same_reply() -> None:
    stream = whole_stream()
    expected = read(stream)
    for at in range(1, len(stream)):
        reply = read(stream[:at], stream[at:])
        reply.first_token_at = expected.first_token_at
        assert reply == expected


def test_carriage_returns_at_the_ends_of_lines_change_nothing() -> None:
    reply = read(whole_stream(event.replace(b"\n", b"\r\n") for event in EVENTS))
    assert (reply.outcome, reply.output_tokens) == ("ok", 5)


def test_a_stream_that_ends_before_its_stop_is_broken() -> None:
    reply = read(whole_stream(EVENTS[:4]))
    assert (reply.outcome, reply.detail) == (
        "stream_broken",
        "the stream ended without message_stop",
    )


def test_a_connection_lost_in_mid_stream_is_a_broken_stream() -> None:
    reply = read(STREAM_HEAD + chunked(EVENTS[:3]), lost="Connection reset by peer")
    assert (reply.outcome, reply.detail) == ("stream_broken", "Connection reset by peer")


def test_a_connection_lost_before_content_is_a_connection_error() -> None:
    assert read(STREAM_HEAD + chunked(EVENTS[:2]), lost="reset").outcome == "connection_error"
    assert read(lost="Connection refused").outcome == "connection_error"


OVERLOADED = (
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"m"}}\n\n'
)


def test_an_error_event_before_content_has_the_outcome_of_its_type() -> None:
    reply = read(whole_stream([*EVENTS[:1], OVERLOADED]))
    assert (reply.outcome, reply.detail) == ("overloaded", "overloaded_error: m")


def test_an_error_event_after_content_breaks_the_stream() -> None:
    reply = read(whole_stream([*EVENTS[:4], OVERLOADED]))
    assert (reply.outcome, reply.detail) == ("stream_broken", "m")


def test_a_whole_answer_brings_its_first_token_with_its_last() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(MESSAGE)
    reply = read(head, MESSAGE[:20], MESSAGE[20:])
    assert (reply.outcome, reply.input_tokens, reply.output_tokens) == ("ok", 10, 5)
    assert reply.first_token_at == 3.0


def test_an_answer_that_is_no_json_is_a_server_error() -> None:
    reply = read(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
    assert reply.outcome == "server_error"
    assert "unreadable" in reply.detail


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, "client_error"),
        (401, "client_error"),
        (429, "rate_limited"),
        (500, "server_error"),
        (503, "server_error"),
        (504, "timeout"),
        (529, "overloaded"),
    ],
)
def test_each_status_has_its_outcome(status: int, outcome: Outcome) -> None:
    reply = read(failed(status, b'{"error":{"type":"t","message":"why"}}'))
    assert (reply.outcome, reply.status, reply.detail) == (outcome, status, f"{status} t: why")
    assert math.isnan(reply.first_token_at)


def test_our_gateway_tells_its_own_refusal_from_the_endpoints() -> None:
    assert read(failed(529, b"{}", b"x-twinload-outcome: rejected")).outcome == "rejected"
    assert read(failed(529, b"{}", b"x-twinload-outcome: nonsense")).outcome == "overloaded"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"2", 2.0), (b"0.5", 0.5), (b"-1", None), (b"nan", None), (b"Wed", None)],
)
def test_retry_after_is_seconds_or_nothing(value: bytes, seconds: float | None) -> None:
    assert read(failed(429, b"{}", b"retry-after: " + value)).retry_after_s == seconds


def test_an_endless_line_is_refused() -> None:
    reader = ReplyReader(Clock())
    reader.on_header(b"Content-Type", b"text/event-stream")
    reader.on_body(b"x" * MAX_LINE_BYTES)
    with pytest.raises(BadReply, match="line of more than"):
        reader.on_body(b"x")
