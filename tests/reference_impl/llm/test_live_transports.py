"""What only sockets can show: pacing, pools, silence, refused connections, keys that are missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from reference_impl.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    RateLimited,
    RequestTimeout,
    UpstreamFailed,
)
from reference_impl.llm.aiohttp_transport import AiohttpTransport
from reference_impl.llm.http import HttpMessages
from reference_impl.llm.port import MessagesPort
from reference_impl.llm.sdk import SdkMessages
from reference_impl.messages import TAG_HEADER, Chunk, RequestTag
from tests.reference_impl.calls import make_call
from tests.reference_impl.llm.scripted_server import ScriptedServer, serving

BODY = b'{"model":"claude-haiku-4-5","max_tokens":5,"messages":[],"stream":%b}'

PORTS: dict[str, Callable[[str], MessagesPort]] = {
    "http": lambda url: HttpMessages(AiohttpTransport(url), forward_tags=True),
    "sdk-aiohttp": lambda url: SdkMessages(api_key="k", base_url=url, forward_tags=True),
    "sdk-httpx2": lambda url: SdkMessages(
        api_key="k", base_url=url, backend="httpx2", forward_tags=True
    ),
}

every_port = pytest.mark.parametrize("make_port", PORTS.values(), ids=PORTS)


def live(
    behaviour: str,
    make_port: Callable[[str], MessagesPort],
    scenario: Callable[[ScriptedServer, MessagesPort], Coroutine[Any, Any, None]],
) -> None:
    async def main() -> None:
        async with serving(behaviour) as server:
            port = make_port(server.url)
            try:
                await scenario(server, port)
            finally:
                await port.aclose()

    asyncio.run(asyncio.wait_for(main(), 20))


@every_port
def test_each_chunk_passes_before_the_next_is_produced(
    make_port: Callable[[str], MessagesPort],
) -> None:
    async def scenario(server: ScriptedServer, port: MessagesPort) -> None:
        server.stepwise = True
        contents: list[Chunk] = []

        async def emit(chunk: Chunk) -> None:
            # The server goes on only when the client has what it sent: buffering would wait for ever.
            if chunk.content:
                contents.append(chunk)
                server.go_on.set()

        await port.complete(make_call(stream=True, body=BODY % b"true"), emit)
        assert len(contents) == 3

    live("answer", make_port, scenario)


@every_port
def test_more_calls_than_a_default_pool_are_in_flight_at_once(
    make_port: Callable[[str], MessagesPort],
) -> None:
    async def scenario(server: ScriptedServer, port: MessagesPort) -> None:
        calls = [
            asyncio.create_task(port.complete(make_call(request_id=i, body=BODY % b"false")))
            for i in range(150)
        ]
        while server.in_flight < 150:
            await asyncio.sleep(0.001)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await server.idle.wait()

    live("timeout", make_port, scenario)


def test_a_pool_with_a_bound_keeps_it() -> None:
    async def scenario(server: ScriptedServer, port: MessagesPort) -> None:
        server.stepwise = True
        most = 0

        async def emit(chunk: Chunk) -> None:
            nonlocal most
            most = max(most, server.in_flight)
            server.go_on.set()

        async with asyncio.TaskGroup() as group:
            for i in range(8):
                call = make_call(request_id=i, stream=True, body=BODY % b"true")
                group.create_task(port.complete(call, emit))
        assert most == 2

    live("answer", lambda url: HttpMessages(AiohttpTransport(url, connections=2)), scenario)


@pytest.mark.parametrize(
    "make_port",
    [
        lambda url: HttpMessages(AiohttpTransport(url, connections=1)),
        lambda url: SdkMessages(api_key="k", base_url=url, connections=1),
        lambda url: SdkMessages(api_key="k", base_url=url, connections=1, backend="httpx2"),
    ],
    ids=PORTS,
)
def test_an_answer_that_is_refused_unread_gives_its_connection_back(
    make_port: Callable[[str], MessagesPort],
) -> None:
    """Invariant 6: with one connection, a second call can only succeed if the first returned it."""

    async def scenario(server: ScriptedServer, port: MessagesPort) -> None:
        with pytest.raises(UpstreamFailed, match="asked for a stream"):
            await port.complete(make_call(stream=True, body=BODY % b"true"))
        await port.complete(make_call(body=BODY % b"false"))

    live("no_stream", make_port, scenario)


@every_port
def test_what_the_server_receives_is_the_body_and_the_tag(
    make_port: Callable[[str], MessagesPort],
) -> None:
    async def scenario(server: ScriptedServer, port: MessagesPort) -> None:
        tag = RequestTag(request_id=3, input_tokens=1)
        await port.complete(make_call(body=BODY % b"false", tag=tag, attempt=1))
        headers, body = server.requests[0]
        assert body == BODY % b"false"
        assert RequestTag.decode(headers[TAG_HEADER]).attempt == 1
        assert headers["content-type"] == "application/json"

    live("answer", make_port, scenario)


@every_port
def test_retry_after_and_request_id_come_with_the_error(
    make_port: Callable[[str], MessagesPort],
) -> None:
    async def scenario(server: ScriptedServer, port: MessagesPort) -> None:
        server.headers = {"retry-after": "12"}
        with pytest.raises(RateLimited) as caught:
            await port.complete(make_call(body=BODY % b"false"))
        assert (caught.value.retry_after_s, caught.value.request_id) == (12.0, "req_7")
        assert len(server.requests) == 1

    live("429", make_port, scenario)


@every_port
def test_a_refused_connection_is_a_connection_that_failed(
    make_port: Callable[[str], MessagesPort],
) -> None:
    async def main() -> None:
        async with serving("answer") as server:
            url = server.url
        port = make_port(url)
        with pytest.raises(ConnectionFailed):
            await port.complete(make_call(body=BODY % b"false"))
        await port.aclose()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_silent_peer_is_a_time_out() -> None:
    async def scenario(server: ScriptedServer, port: MessagesPort) -> None:
        with pytest.raises(RequestTimeout, match=r"silent for 0\.05 s"):
            await port.complete(make_call(body=BODY % b"false"))
        await server.idle.wait()

    live("timeout", lambda url: HttpMessages(AiohttpTransport(url, read_timeout_s=0.05)), scenario)


def test_without_a_key_the_sdk_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    async def scenario(server: ScriptedServer, port: MessagesPort) -> None:
        with pytest.raises(AuthenticationFailed, match="ANTHROPIC_API_KEY"):
            await port.complete(make_call(body=BODY % b"false"))
        assert server.requests == []

    live("answer", lambda url: SdkMessages(base_url=url), scenario)


def test_a_base_url_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        AiohttpTransport("localhost:8000")
