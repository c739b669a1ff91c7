"""HttpMessages over a transport in virtual time: what goes out, and how answers are read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from reference_impl.errors import (
    ConnectionFailed,
    Overloaded,
    Rejected,
    ServiceError,
    StreamBroken,
    UpstreamFailed,
)
from reference_impl.llm.http import HttpMessages
from reference_impl.llm.transport import Receiver
from reference_impl.llm.wire import OUTCOME_HEADER
from reference_impl.messages import TAG_HEADER, Call, Chunk, Completion, RequestTag
from simulation.kernel import run
from tests.reference_impl.calls import make_call
from tests.reference_impl.llm.scripted_server import MESSAGE, event

SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
START = event("message_start", message={"usage": {"input_tokens": 2, "output_tokens": 1}})
DELTA = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "hi"})
END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5})
STOP = event("message_stop")


class ScriptedTransport:
    """Answers every request alike: status, headers, then pieces (bytes), pauses (seconds) or an error."""

    def __init__(
        self, status: int, headers: Mapping[str, str], *script: bytes | float | Exception
    ) -> None:
        self._status = status
        self._headers = headers
        self._script = script
        self.sent: list[tuple[str, Mapping[str, str], bytes]] = []
        self.closed = False

    async def post(
        self, path: str, headers: Mapping[str, str], body: bytes, receiver: Receiver
    ) -> None:
        self.sent.append((path, headers, body))
        receiver.head(self._status, self._headers)
        for item in self._script:
            if isinstance(item, bytes):
                await receiver.data(item)
            elif isinstance(item, Exception):
                raise item
            else:
                await asyncio.sleep(item)

    async def aclose(self) -> None:
        self.closed = True


async def collect(
    transport: ScriptedTransport, call: Call, **options: Any
) -> tuple[Completion | ServiceError, list[tuple[float, bytes]]]:
    """The outcome, and each chunk with the instant at which it was passed on."""
    loop = asyncio.get_running_loop()
    chunks: list[tuple[float, bytes]] = []

    async def emit(chunk: Chunk) -> None:
        chunks.append((loop.time(), chunk.data))

    try:
        return await HttpMessages(transport, **options).complete(call, emit), chunks
    except ServiceError as error:
        return error, chunks


def test_the_calls_own_bytes_go_out_with_key_and_version() -> None:
    transport = ScriptedTransport(200, JSON, json.dumps(MESSAGE).encode())
    run(collect(transport, make_call(body=b'{"x":1}'), api_key="secret"))
    path, headers, body = transport.sent[0]
    assert (path, body) == ("/v1/messages", b'{"x":1}')
    assert headers["x-api-key"] == "secret"
    assert headers["anthropic-version"] == "2023-06-01"
    assert headers["accept-encoding"] == "identity"
    assert TAG_HEADER not in headers


TAG = RequestTag(request_id=5, attempt=0, prompt_id=9, input_tokens=3, output_tokens=4)


def test_a_tag_goes_to_a_mock_with_the_present_attempt() -> None:
    transport = ScriptedTransport(200, JSON, json.dumps(MESSAGE).encode())
    run(collect(transport, make_call(tag=TAG, attempt=2), forward_tags=True))
    sent = RequestTag.decode(transport.sent[0][1][TAG_HEADER])
    assert sent == RequestTag(5, 2, 9, 3, 4)


def test_a_tag_never_goes_to_a_real_provider() -> None:
    transport = ScriptedTransport(200, JSON, json.dumps(MESSAGE).encode())
    run(collect(transport, make_call(tag=TAG)))
    assert TAG_HEADER not in transport.sent[0][1]


def test_events_pass_at_the_instants_at_which_they_are_complete() -> None:
    half = len(DELTA) // 2
    transport = ScriptedTransport(
        200, SSE, 1.0, START, 1.0, DELTA[:half], 1.0, DELTA[half:] + END, 1.0, STOP
    )
    completion, chunks = run(collect(transport, make_call(stream=True)))
    assert chunks == [(1.0, START), (3.0, DELTA + END), (4.0, STOP)]
    assert isinstance(completion, Completion)
    assert completion.usage.output_tokens == 5
    assert (completion.body, completion.size_bytes) == (b"", len(START + DELTA + END + STOP))


def test_a_stream_that_ends_before_its_content_is_a_lost_connection() -> None:
    outcome, _ = run(collect(ScriptedTransport(200, SSE, START), make_call(stream=True)))
    assert type(outcome) is ConnectionFailed
    assert outcome.retryable


def test_a_stream_that_ends_after_its_content_is_broken() -> None:
    outcome, _ = run(collect(ScriptedTransport(200, SSE, START, DELTA), make_call(stream=True)))
    assert isinstance(outcome, StreamBroken)


def test_an_error_before_content_keeps_its_class_and_passes_nothing_on() -> None:
    failure = b'event: error\ndata: {"error":{"type":"overloaded_error","message":"busy"}}\n\n'
    outcome, chunks = run(collect(ScriptedTransport(200, SSE, failure), make_call(stream=True)))
    assert isinstance(outcome, Overloaded)
    assert chunks == []


def test_an_error_in_the_same_block_as_content_breaks_the_stream_after_it() -> None:
    failure = b'event: error\ndata: {"error":{"type":"overloaded_error","message":"busy"}}\n\n'
    transport = ScriptedTransport(200, SSE, START + DELTA + failure)
    outcome, chunks = run(collect(transport, make_call(stream=True)))
    assert isinstance(outcome, StreamBroken)
    assert [data for _, data in chunks] == [START + DELTA]


def test_an_instance_of_ours_passes_its_outcome_on() -> None:
    transport = ScriptedTransport(529, {OUTCOME_HEADER: "rejected"}, b"")
    outcome, _ = run(collect(transport, make_call(), trust_outcome=True))
    assert isinstance(outcome, Rejected)


def test_an_answer_that_is_no_stream_is_refused_when_one_was_asked_for() -> None:
    transport = ScriptedTransport(200, JSON, json.dumps(MESSAGE).encode())
    outcome, _ = run(collect(transport, make_call(stream=True)))
    assert isinstance(outcome, UpstreamFailed)
    assert "content-type 'application/json'" in outcome.message


@pytest.mark.parametrize("status", [101, 302])
def test_a_status_that_is_neither_answer_nor_error_is_the_peers_failure(status: int) -> None:
    outcome, _ = run(collect(ScriptedTransport(status, {}), make_call()))
    assert isinstance(outcome, UpstreamFailed)
    assert str(status) in outcome.message


def test_an_answer_longer_than_the_bound_is_refused() -> None:
    transport = ScriptedTransport(200, JSON, b"x" * 60, b"x" * 60)
    outcome, _ = run(collect(transport, make_call(), max_body_bytes=100))
    assert isinstance(outcome, UpstreamFailed)
    assert "longer than 100 bytes" in outcome.message
    assert not outcome.retryable


def test_an_event_longer_than_the_bound_is_refused() -> None:
    transport = ScriptedTransport(200, SSE, b"data: " + b"x" * 200)
    outcome, _ = run(collect(transport, make_call(stream=True), max_event_bytes=100))
    assert isinstance(outcome, UpstreamFailed)
    assert "no end" in outcome.message


def test_an_endless_error_page_is_kept_in_part() -> None:
    transport = ScriptedTransport(500, {}, *[b"x" * 50_000] * 10)
    outcome, _ = run(collect(transport, make_call()))
    assert isinstance(outcome, UpstreamFailed)
    assert len(outcome.message) < 250


def test_closing_closes_the_transport() -> None:
    transport = ScriptedTransport(200, JSON)
    run(HttpMessages(transport).aclose())
    assert transport.closed
