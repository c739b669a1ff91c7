"""What every adapter of `MessagesPort` does, whatever carries the call: plain HTTP, the SDK, the model in process.

A subject is one line in SUBJECTS: how to open a port to an endpoint with a given behaviour, and the clock it runs on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, NamedTuple

import pytest

from loadtests.mock.build import build_mock_app
from loadtests.mock.protocol import MockProtocol
from reference_impl.errors import (
    ConnectionFailed,
    InvalidRequest,
    Overloaded,
    RateLimited,
    ServiceError,
    StreamBroken,
    UpstreamFailed,
)
from reference_impl.live.serving import serving as http_serving
from reference_impl.llm.aiohttp_transport import AiohttpTransport
from reference_impl.llm.http import HttpMessages
from reference_impl.llm.port import MessagesPort
from reference_impl.llm.sdk import SdkMessages
from reference_impl.llm.sse import split_events
from reference_impl.messages import Call, Chunk, Completion
from simulation.kernel import run as run_virtual
from simulation.models.llm_endpoint import LLMEndpoint
from simulation.scenario.endpoint import EndpointProfile
from tests.reference_impl.calls import make_call
from tests.reference_impl.llm.scripted_server import serving

Behaviour = Literal[
    "answer", "400", "429", "500", "529", "timeout", "drop_connection", "drop_stream",
    "error_in_stream",
]  # fmt: skip

LIMIT_S = 20.0


class Opened(NamedTuple):
    """A port, and a wait until the endpoint behind it has nothing in flight."""

    port: MessagesPort
    idle: Callable[[], Coroutine[Any, Any, None]]
    in_flight: Callable[[], int]


Opener = Callable[[Behaviour], AbstractAsyncContextManager[Opened]]


def live(make_port: Callable[[str], MessagesPort]) -> Opener:
    """A subject over a loopback server."""

    @asynccontextmanager
    async def opened(behaviour: Behaviour) -> AsyncIterator[Opened]:
        async with serving(behaviour) as server:
            port = make_port(server.url)

            async def idle() -> None:
                await server.idle.wait()

            try:
                yield Opened(port, idle, lambda: server.in_flight)
            finally:
                await port.aclose()

    return opened


def profile_of(behaviour: Behaviour, *, speedup: float) -> EndpointProfile:
    """The endpoint: the first token after 1 s, then 30 tokens in 3 s, all divided by `speedup`."""
    faults = [] if behaviour == "answer" else [{"kind": behaviour, "probability": 1.0}]
    service = {
        "kind": "provider",
        "ttft_s": {"kind": "constant", "value": 1.0},
        "tokens_per_s": {"kind": "constant", "value": 10.0},
    }
    return EndpointProfile.model_validate(
        {
            "service": service,
            "output_tokens": {"kind": "constant", "value": 30},
            "faults": faults,
            "speedup": speedup,
        }
    )


@asynccontextmanager
async def model(behaviour: Behaviour) -> AsyncIterator[Opened]:
    """A subject in process."""
    endpoint = LLMEndpoint(profile_of(behaviour, speedup=1.0), 1)

    async def idle() -> None:
        assert endpoint.statistics().in_flight == 0

    yield Opened(endpoint, idle, lambda: endpoint.statistics().in_flight)


def mocked(make_port: Callable[[str], MessagesPort]) -> Opener:
    """A subject over the mock server."""

    @asynccontextmanager
    async def opened(behaviour: Behaviour) -> AsyncIterator[Opened]:
        profile = profile_of(behaviour, speedup=100.0)
        mock = build_mock_app(profile, 1, wall_clock=time.time)
        statistics = mock.endpoint.statistics

        async def idle() -> None:
            # The server learns of a lost client from its socket; there is nothing to wait on but the count.
            while statistics().in_flight:
                await asyncio.sleep(0.001)

        async with http_serving(mock.app, 0, http=MockProtocol) as url:
            port = make_port(url)
            try:
                yield Opened(port, idle, lambda: statistics().in_flight)
            finally:
                await port.aclose()
                mock.app.stop()
                await mock.batches.aclose()

    return opened


def run_live(main: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(main, LIMIT_S))


SUBJECTS: dict[str, tuple[Opener, Callable[[Coroutine[Any, Any, Any]], None]]] = {
    "http": (live(lambda url: HttpMessages(AiohttpTransport(url))), run_live),
    "sdk-aiohttp": (live(lambda url: SdkMessages(api_key="k", base_url=url)), run_live),
    "sdk-httpx2": (
        live(lambda url: SdkMessages(api_key="k", base_url=url, backend="httpx2")),
        run_live,
    ),
    "http-mock": (mocked(lambda url: HttpMessages(AiohttpTransport(url), api_key="k")), run_live),
    "sdk-mock": (mocked(lambda url: SdkMessages(api_key="k", base_url=url)), run_live),
    "model": (model, run_virtual),
}

Scenario = Callable[[Opened], Coroutine[Any, Any, None]]
Meet = Callable[[Behaviour, Scenario], None]


@pytest.fixture(params=SUBJECTS)
def meet(request: pytest.FixtureRequest) -> Meet:
    """Plays a scenario with the subject's port to an endpoint of the given behaviour."""
    opener, run = SUBJECTS[request.param]

    def play(behaviour: Behaviour, scenario: Scenario) -> None:
        async def main() -> None:
            async with opener(behaviour) as opened:
                await scenario(opened)

        run(main())

    return play


def call_for(*, stream: bool, request_id: int = 1) -> Call:
    body = json.dumps(
        {
            "model": "claude-haiku-4-5",
            "max_tokens": 64,
            "stream": stream,
            "messages": [{"role": "user", "content": "Count to three."}],
        }
    ).encode()
    return make_call(request_id=request_id, stream=stream, body=body, size_bytes=len(body))


class Client:
    """Collects chunks; `reached` is set with the first content."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.reached = asyncio.Event()

    async def emit(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        if chunk.content:
            self.reached.set()

    @property
    def saw_content(self) -> bool:
        return any(chunk.content for chunk in self.chunks)


async def failure_of(opened: Opened, *, stream: bool) -> tuple[ServiceError, Client]:
    client = Client()
    with pytest.raises(ServiceError) as caught:
        await opened.port.complete(call_for(stream=stream), client.emit if stream else None)
    return caught.value, client


def test_a_whole_answer_comes_with_its_usage_and_its_bytes(meet: Meet) -> None:
    async def scenario(opened: Opened) -> None:
        completion = await opened.port.complete(call_for(stream=False))
        message = json.loads(completion.body)
        assert message["role"] == "assistant"
        assert completion.size_bytes == len(completion.body)
        assert completion.stop_reason == message["stop_reason"] == "end_turn"
        assert completion.usage.output_tokens == message["usage"]["output_tokens"] > 0
        assert completion.usage.input_tokens == message["usage"]["input_tokens"] > 0

    meet("answer", scenario)


def test_a_stream_arrives_as_whole_events_from_start_to_stop(meet: Meet) -> None:
    async def scenario(opened: Opened) -> None:
        client = Client()
        completion = await opened.port.complete(call_for(stream=True), client.emit)
        assert isinstance(completion, Completion)
        for chunk in client.chunks:
            assert chunk.data.endswith(b"\n\n")
            assert chunk.content is (b"content_block_delta" in chunk.data)
        names = [e.name for chunk in client.chunks for e in split_events(chunk.data)]
        assert (names[0], names[-1]) == ("message_start", "message_stop")
        assert "content_block_delta" in names
        assert completion.usage.output_tokens > 0
        assert completion.usage.input_tokens > 0
        assert completion.stop_reason == "end_turn"

    meet("answer", scenario)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("behaviour", "kind", "retryable"),
    [
        ("400", InvalidRequest, False),
        ("429", RateLimited, True),
        ("500", UpstreamFailed, True),
        ("529", Overloaded, True),
    ],
)
def test_a_refusal_is_the_error_of_its_status(
    meet: Meet, behaviour: Behaviour, kind: type[ServiceError], retryable: bool, stream: bool
) -> None:
    async def scenario(opened: Opened) -> None:
        error, client = await failure_of(opened, stream=stream)
        assert type(error) is kind
        assert (error.status, error.retryable) == (int(behaviour), retryable)
        assert error.message
        assert client.chunks == []

    meet(behaviour, scenario)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_connection_lost_before_the_answer_may_be_tried_again(meet: Meet, stream: bool) -> None:
    async def scenario(opened: Opened) -> None:
        error, client = await failure_of(opened, stream=stream)
        assert type(error) is ConnectionFailed
        assert error.retryable
        assert not client.saw_content

    meet("drop_connection", scenario)


@pytest.mark.parametrize("behaviour", ["drop_stream", "error_in_stream"])
def test_a_stream_that_fails_after_content_is_broken(meet: Meet, behaviour: Behaviour) -> None:
    async def scenario(opened: Opened) -> None:
        error, client = await failure_of(opened, stream=True)
        assert isinstance(error, StreamBroken)
        assert not error.retryable
        assert client.saw_content
        assert all(e.name != "error" for c in client.chunks for e in split_events(c.data))

    meet(behaviour, scenario)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_cancelled_call_stops_the_endpoints_work(meet: Meet, stream: bool) -> None:
    """Invariant 6."""

    async def scenario(opened: Opened) -> None:
        task = asyncio.create_task(opened.port.complete(call_for(stream=stream), Client().emit))
        while not opened.in_flight():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await opened.idle()

    meet("timeout", scenario)


def test_a_client_that_leaves_in_mid_stream_stops_the_endpoints_work(meet: Meet) -> None:
    """Invariant 6."""

    class Left(Exception):
        pass

    async def leave(chunk: Chunk) -> None:
        if chunk.content:
            raise Left

    async def scenario(opened: Opened) -> None:
        with pytest.raises(Left):
            await opened.port.complete(call_for(stream=True), leave)
        await opened.idle()

    meet("answer", scenario)


def test_fifty_calls_at_once_are_all_answered(meet: Meet) -> None:
    async def scenario(opened: Opened) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    opened.port.complete(call_for(stream=i % 2 == 0, request_id=i), Client().emit)
                )
                for i in range(50)
            ]
        assert all(task.result().usage.output_tokens > 0 for task in tasks)
        await opened.idle()

    meet("answer", scenario)


def test_closing_twice_is_closing_once(meet: Meet) -> None:
    async def scenario(opened: Opened) -> None:
        await opened.port.complete(call_for(stream=False))
        await opened.port.aclose()
        await opened.port.aclose()

    meet("answer", scenario)
