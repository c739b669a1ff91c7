"""The official SDK against the mock: whatever it does with the real API, it does here."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import httpx2
import pydantic
import pytest

from tests.loadtests.mock.blocking import Blocking
from tests.loadtests.mock.process import Mock

MODEL = "claude-sonnet-5-5"
HELLO: Any = [{"role": "user", "content": "hello"}]
_WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {
        "type": "object",
        "properties": {
            "place": {"type": "string", "minLength": 6},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 3},
        },
        "required": ["place", "unit", "days"],
    },
}


def fault(order: str) -> dict[str, str]:
    return {"x-mock-fault": order}


def fresh_row() -> int:
    """A request id that no other test has used."""
    return uuid.uuid4().int >> 96


@pytest.fixture(scope="module", params=["sync", "async-httpx2", "async-aiohttp"])
def client(mock: Mock, request: pytest.FixtureRequest) -> Iterator[anthropic.Anthropic]:
    """Every client of the SDK; the asynchronous ones behind the face of the synchronous one."""
    if request.param == "sync":
        with anthropic.Anthropic(api_key="key", base_url=mock.url) as sdk:
            yield sdk
        return
    loop = asyncio.new_event_loop()
    opened = Blocking(async_client(mock, request.param.removeprefix("async-")), loop)
    with opened as face:
        yield face
    loop.close()


@contextlib.asynccontextmanager
async def async_client(mock: Mock, backend: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    http = anthropic.DefaultAioHttpClient() if backend == "aiohttp" else None
    async with anthropic.AsyncAnthropic(
        api_key="key", base_url=mock.url, http_client=http
    ) as client:
        yield client


both_backends = pytest.mark.parametrize("backend", ["httpx2", "aiohttp"])


# --- create ---


def test_a_message_is_complete(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=30, messages=HELLO)
    (block,) = message.content
    assert block.type == "text"
    assert len(block.text) == 30 * 4 - 1
    assert message.model == MODEL
    assert message.role == "assistant"
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 30
    assert message.usage.input_tokens == 5
    assert message.id.startswith("msg_")
    assert message._request_id is not None
    assert message._request_id.startswith("req_")


def test_the_answer_to_a_prompt_is_always_the_same(client: anthropic.Anthropic) -> None:
    texts = {
        str(client.messages.create(model=MODEL, max_tokens=1000, messages=HELLO).content)
        for _ in range(3)
    }
    other = client.messages.create(
        model=MODEL, max_tokens=1000, messages=[{"role": "user", "content": "good bye"}]
    )
    assert len(texts) == 1
    assert str(other.content) not in texts


@both_backends
def test_the_async_client_creates_and_streams(mock: Mock, backend: str) -> None:
    async def main() -> None:
        async with async_client(mock, backend) as client:
            message = await client.messages.create(model=MODEL, max_tokens=50, messages=HELLO)
            pieces = []
            async with client.messages.stream(model=MODEL, max_tokens=50, messages=HELLO) as stream:
                async for text in stream.text_stream:
                    pieces.append(text)  # noqa: PERF401
                final = await stream.get_final_message()
            (streamed,), (whole,) = final.content, message.content
            assert streamed.type == whole.type == "text"
            assert "".join(pieces) == streamed.text == whole.text
            assert final.usage == message.usage
            assert len(pieces) == 40

    asyncio.run(main())


def test_a_raw_stream_has_the_events_in_their_order(client: anthropic.Anthropic) -> None:
    with client.messages.create(model=MODEL, max_tokens=3, messages=HELLO, stream=True) as stream:
        events = list(stream)
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, end = events[0], events[-2]
    assert start.type == "message_start"
    assert start.message.content == []
    assert start.message.stop_reason is None
    assert start.message.usage.input_tokens == 5
    assert end.type == "message_delta"
    assert (end.delta.stop_reason, end.usage.output_tokens) == ("max_tokens", 3)


def test_a_stop_sequence_ends_the_answer_before_it(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model=MODEL, max_tokens=1000, messages=HELLO)
    text = whole.content[0].text  # type: ignore[union-attr]
    word = text.split()[7]
    cut = client.messages.create(
        model=MODEL, max_tokens=1000, messages=HELLO, stop_sequences=["never", word]
    )
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", word)
    assert cut.content[0].text == text[: text.index(word)]  # type: ignore[union-attr]
    assert cut.usage.output_tokens <= 8


# --- tools, structured output, thinking ---


def test_a_forced_tool_call_satisfies_its_schema(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=MODEL,
        max_tokens=200,
        messages=HELLO,
        tools=[_WEATHER],
        tool_choice={"type": "tool", "name": "get_weather"},
    )
    (call,) = message.content
    assert message.stop_reason == "tool_use"
    assert call.type == "tool_use"
    assert call.input == {"place": "textxx", "unit": "celsius", "days": 3}


def test_a_streamed_tool_call_arrives_as_partial_json(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=200, messages=HELLO, tools=[_WEATHER], tool_choice={"type": "any"}
    ) as stream:
        partial = [event.partial_json for event in stream if event.type == "input_json"]
        call = stream.get_final_message().content[0]
    assert len(partial) > 3
    assert call.type == "tool_use"
    assert call.input == {"place": "textxx", "unit": "celsius", "days": 3}


def test_a_result_can_be_handed_back_for_an_answer_in_text(client: anthropic.Anthropic) -> None:
    first = client.messages.create(
        model=MODEL, max_tokens=99, messages=HELLO, tools=[_WEATHER], tool_choice={"type": "any"}
    )
    call = first.content[0]
    assert call.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    turns: Any = [
        *HELLO,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = client.messages.create(model=MODEL, max_tokens=99, messages=turns, tools=[_WEATHER])
    assert second.stop_reason == "end_turn"
    assert second.content[0].type == "text"


def test_the_tool_runner_falls_back_from_threads(client: anthropic.Anthropic) -> None:
    def add(left: int, right: int) -> str:
        """Add two numbers."""
        return str(left + right)

    async def add_async(left: int, right: int) -> str:
        """Add two numbers."""
        return str(left + right)

    tool: Any = anthropic.beta_tool(add)
    if isinstance(client, Blocking):  # each flavour takes tools of its own
        tool = anthropic.beta_async_tool(add_async)
    runner = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=99, messages=HELLO, tools=[tool]
    )
    final = runner.until_done()
    assert final.stop_reason == "end_turn"


def test_structured_output_is_parsed(client: anthropic.Anthropic) -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    parsed = client.messages.parse(
        model=MODEL, max_tokens=100, messages=HELLO, output_format=Person
    )
    assert parsed.parsed_output == Person(name="text", age=0)


def test_thinking_comes_first_with_a_signature(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=MODEL,
        max_tokens=2000,
        messages=HELLO,
        thinking={"type": "enabled", "budget_tokens": 1024},
    ) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    thinking, text = message.content
    assert thinking.type == "thinking"
    assert thinking.signature
    assert text.type == "text"
    assert kinds.index("thinking") < kinds.index("text")
    details = message.usage.output_tokens_details
    assert details is not None
    assert details.thinking_tokens == 16  # 40% of 40
    assert message.usage.output_tokens == 40


# --- counting, models, batches ---


def test_count_tokens_equals_the_input_of_the_create(client: anthropic.Anthropic) -> None:
    prompt: Any = {
        "system": "You are terse.",
        "tools": [_WEATHER],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is the weather? é 你好"}]}
        ],
    }
    count = client.messages.count_tokens(model=MODEL, **prompt)
    message = client.messages.create(model=MODEL, max_tokens=1, **prompt)
    assert count.input_tokens == message.usage.input_tokens > 20


def test_models_are_listed_page_by_page_and_found_by_alias(client: anthropic.Anthropic) -> None:
    names = [model.id for model in client.models.list(limit=4)]
    assert MODEL in names
    assert len(names) == len(set(names)) >= 15
    assert client.models.retrieve("claude-opus-4-5-20251101").id == "claude-opus-4-5"
    assert client.models.retrieve(MODEL).line == "sonnet"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-unknown")


def test_a_batch_runs_to_its_last_result(client: anthropic.Anthropic) -> None:
    def request(name: str, **changes: Any) -> Any:
        params = {"model": MODEL, "max_tokens": 5, "messages": HELLO, **changes}
        return {"custom_id": name, "params": params}

    batch = client.messages.batches.create(
        requests=[*(request(f"row-{i}") for i in range(20)), request("bad", max_tokens=0)]
    )
    assert batch.processing_status == "in_progress"
    assert batch.request_counts.processing == 21
    ended = _ended(client, batch.id)
    assert (ended.request_counts.succeeded, ended.request_counts.errored) == (20, 1)
    results = {line.custom_id: line.result for line in client.messages.batches.results(batch.id)}
    assert len(results) == 21
    bad, good = results["bad"], results["row-7"]
    assert bad.type == "errored"
    assert bad.error.error.type == "invalid_request_error"
    assert good.type == "succeeded"
    assert good.message.usage.output_tokens == 5
    assert good.message.usage.service_tier == "batch"
    assert batch.id in [item.id for item in client.messages.batches.list(limit=1)]
    assert client.messages.batches.delete(batch.id).id == batch.id
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)


def test_a_cancelled_batch_ends_with_what_was_done(client: anthropic.Anthropic) -> None:
    params: Any = {"model": MODEL, "max_tokens": 99, "messages": HELLO}
    batch = client.messages.batches.create(
        requests=[{"custom_id": str(i), "params": params} for i in range(2_000)]
    )
    cancelled = client.messages.batches.cancel(batch.id)
    assert cancelled.processing_status == "canceling"
    counts = _ended(client, batch.id).request_counts
    assert counts.canceled > 0
    assert counts.succeeded + counts.canceled == 2_000


def _ended(client: anthropic.Anthropic, batch_id: str) -> Any:
    give_up_s = time.monotonic() + 10
    while True:
        batch = client.messages.batches.retrieve(batch_id)
        if batch.processing_status == "ended":
            return batch
        assert time.monotonic() < give_up_s, "the batch does not end"


# --- errors and retries ---


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("400", anthropic.BadRequestError),
        ("401", anthropic.AuthenticationError),
        ("403", anthropic.PermissionDeniedError),
        ("404", anthropic.NotFoundError),
        ("413", anthropic.APIStatusError),
        ("429", anthropic.RateLimitError),
        ("500", anthropic.InternalServerError),
        ("502", anthropic.InternalServerError),
        ("503", anthropic.APIStatusError),
        ("504", anthropic.APIStatusError),
        ("529", anthropic.APIStatusError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_each_status_is_its_error_class(
    client: anthropic.Anthropic, kind: str, error: type[anthropic.APIStatusError], stream: bool
) -> None:
    with pytest.raises(error) as caught:
        client.with_options(max_retries=0).messages.create(
            model=MODEL,
            max_tokens=5,
            messages=HELLO,
            stream=stream,
            extra_headers=fault(f"kind={kind}"),
        )
    assert caught.value.status_code == int(kind)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["request_id"] == caught.value.request_id
    assert caught.value.request_id is not None


def test_the_sdk_retries_and_waits_as_told(client: anthropic.Anthropic, mock: Mock) -> None:
    row = fresh_row()
    headers = {
        **fault(f"kind=429;times=2;key={uuid.uuid4().hex};retry_after=0.3"),
        "x-twinload-request": f"id={row};output=5",
    }
    message = client.messages.create(
        model=MODEL, max_tokens=9, messages=HELLO, extra_headers=headers
    )
    assert message.usage.output_tokens == 5
    mock.wait_for(lambda record: record["request_id"] == row and record["status"] == 200)
    tries = [record for record in mock.records() if record["request_id"] == row]
    assert [record["status"] for record in tries] == [429, 429, 200]
    waits = [b["arrived_s"] - a["arrived_s"] for a, b in itertools.pairwise(tries)]
    assert all(0.3 <= wait < 1.3 for wait in waits), waits


def test_a_dropped_connection_is_a_connection_error_and_is_retried(
    client: anthropic.Anthropic,
) -> None:
    order = fault(f"kind=drop_connection;times=1;key={uuid.uuid4().hex}")
    with pytest.raises(anthropic.APIConnectionError):
        client.with_options(max_retries=0).messages.create(
            model=MODEL,
            max_tokens=5,
            messages=HELLO,
            extra_headers=fault("kind=drop_connection"),
        )
    client.messages.create(model=MODEL, max_tokens=5, messages=HELLO, extra_headers=order)


def test_an_error_inside_a_stream_is_an_api_error_after_half_of_it(
    client: anthropic.Anthropic,
) -> None:
    received: list[str] = []
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.stream(
            model=MODEL,
            max_tokens=40,
            messages=HELLO,
            extra_headers=fault("kind=error_in_stream"),
        ) as stream,
    ):
        received.extend(stream.text_stream)
    assert caught.value.status_code == 200
    assert len(received) == 20


@pytest.mark.parametrize("backend", ["httpx2", "aiohttp"])
def test_a_stream_cut_off_in_the_middle_never_looks_complete(mock: Mock, backend: str) -> None:
    received: list[str] = []

    async def read() -> None:
        async with (
            async_client(mock, backend) as client,
            client.messages.stream(
                model=MODEL,
                max_tokens=40,
                messages=HELLO,
                extra_headers=fault("kind=drop_stream"),
            ) as stream,
        ):
            async for text in stream.text_stream:
                received.append(text)  # noqa: PERF401 - what came before the break counts

    with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
        asyncio.run(read())
    assert 0 < len(received) <= 20


def test_a_hanging_endpoint_meets_the_clients_timeout(
    client: anthropic.Anthropic, mock: Mock
) -> None:
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(max_retries=0, timeout=0.2).messages.create(
            model=MODEL, max_tokens=5, messages=HELLO, extra_headers=fault("kind=timeout")
        )
    mock.wait_until_idle()


# --- many, and those who leave ---


def test_a_client_that_leaves_frees_its_place(client: anthropic.Anthropic, mock: Mock) -> None:
    # A thousand times 20 ms to the first token.
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(max_retries=0, timeout=0.1).messages.create(
            model=MODEL,
            max_tokens=40,
            messages=HELLO,
            extra_headers=fault("kind=slow;factor=1000"),
        )
    mock.wait_until_idle()
    # 50 s of stream.
    row = fresh_row()
    with client.messages.create(
        model=MODEL,
        max_tokens=50_000,
        messages=HELLO,
        stream=True,
        extra_headers={"x-twinload-request": f"id={row};output=50000"},
    ) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                break
    mock.wait_until_idle()
    left = mock.wait_for(lambda record: record["request_id"] == row)
    assert left["status"] == 499
    assert left["endpoint_s"] < 5
    assert 0 < left["output_tokens"] < 5_000


@both_backends
def test_two_hundred_streams_at_once_all_come_to_their_end(mock: Mock, backend: str) -> None:
    async def main() -> list[tuple[str | None, int]]:
        async with async_client(mock, backend) as client:

            async def one(i: int) -> tuple[str | None, int]:
                prompt: Any = [{"role": "user", "content": f"prompt {i}"}]
                async with client.messages.stream(
                    model=MODEL, max_tokens=1000, messages=prompt
                ) as stream:
                    final = await stream.get_final_message()
                    return final.stop_reason, final.usage.output_tokens

            return await asyncio.gather(*(one(i) for i in range(200)))

    assert asyncio.run(main()) == [("end_turn", 40)] * 200


# --- auth and versions ---


def test_bad_keys_and_versions_are_told(mock: Mock, client: anthropic.Anthropic) -> None:
    invalid: Callable[..., Any] = client.with_options(api_key="sk-ant-invalid-1").messages.create
    with pytest.raises(anthropic.AuthenticationError):
        invalid(model=MODEL, max_tokens=5, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="anthropic-version"):
        client.messages.create(
            model=MODEL,
            max_tokens=5,
            messages=HELLO,
            extra_headers={"anthropic-version": "1999-01-01"},
        )
    with pytest.raises(anthropic.NotFoundError, match="claude-unknown"):
        client.messages.create(model="claude-unknown", max_tokens=5, messages=HELLO)
