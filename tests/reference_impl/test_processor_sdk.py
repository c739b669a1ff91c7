"""AsyncLLMProcessor over the real SDK, its HTTP intercepted by respx (see conftest.py for httpx and httpx2)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx  # conftest.py makes this name httpx2, which the SDK is built on
import pytest
import respx
from anthropic import AsyncAnthropic

from reference_impl.concurrency import BatchFailed
from reference_impl.deployment import RetrySpec
from reference_impl.errors import (
    ConnectionFailed,
    InvalidRequest,
    Overloaded,
    RateLimited,
    RequestTimeout,
)
from reference_impl.processor import AsyncLLMProcessor
from tests.reference_impl.llm.scripted_server import MESSAGE

URL = "https://api.anthropic.com/v1/messages"
QUICK = RetrySpec(max_attempts=3, backoff_s=0.002, backoff_max_s=0.01, budget_reserve_per_s=100.0)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[respx.Route]:
    """The API's one route; requests to anything else fail."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    with respx.mock() as router:
        yield router.post(URL)


def answer(*blocks: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json=MESSAGE | {"content": list(blocks)})


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def refusal(status: int, kind: str, **headers: str) -> httpx.Response:
    body = {"type": "error", "error": {"type": kind, "message": "on purpose"}}
    return httpx.Response(status, json=body, headers=headers)


def ask(prompt: str = "hello", **options: Any) -> str:
    async def main() -> str:
        settings: dict[str, Any] = {"retry": QUICK} | options
        async with AsyncLLMProcessor("claude-haiku-4-5", **settings) as processor:
            return await processor.process_single(prompt)

    return asyncio.run(asyncio.wait_for(main(), 20))


def test_a_prompt_becomes_one_request_and_its_answer_the_text(endpoint: respx.Route) -> None:
    endpoint.return_value = answer(text("hi "), text("there"))
    assert ask("hello") == "hi there"
    request = endpoint.calls.last.request
    assert json.loads(request.content) == {
        "model": "claude-haiku-4-5",
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": "hello"}],
    }
    assert request.headers["authorization"] == "Bearer sk-ant-test"
    assert request.headers["anthropic-version"] == "2026-10-21"


def test_a_thinking_block_first_is_no_trouble(endpoint: respx.Route) -> None:
    thinking = {"type": "thinking", "thinking": "let me see", "signature": "s"}
    endpoint.return_value = answer(thinking, text("42"))
    assert ask() == "42"


def test_429_is_tried_again_after_the_time_that_it_names(endpoint: respx.Route) -> None:
    endpoint.side_effect = [
        refusal(429, "rate_limit_error", **{"retry-after": "0.05"}),
        answer(text("at last")),
    ]

    async def main() -> tuple[str, float]:
        clock = asyncio.get_running_loop().time
        # A jitter of nothing: the wait can only come from the header.
        processor = AsyncLLMProcessor(retry=QUICK, uniform=lambda *_: 1e-9)
        async with processor:
            await asyncio.to_thread(lambda: processor.client)
            started_s = clock()
            return await processor.process_single("hello"), clock() - started_s

    words, passed_s = asyncio.run(asyncio.wait_for(main(), 20))
    assert words == "at last"
    assert passed_s >= 0.049
    assert endpoint.call_count == 2


def test_retry_after_ms_wins_over_retry_after(endpoint: respx.Route) -> None:
    endpoint.side_effect = [
        refusal(429, "rate_limit_error", **{"retry-after": "3600", "retry-after-ms": "5"}),
        answer(text("ok")),
    ]
    assert ask() == "ok"


def test_429_to_the_end_is_a_rate_limit_with_the_wait_it_names(endpoint: respx.Route) -> None:
    endpoint.return_value = refusal(429, "rate_limit_error", **{"retry-after": "0.01"})
    with pytest.raises(RateLimited) as caught:
        ask()
    assert caught.value.retry_after_s == 0.01
    assert endpoint.call_count == QUICK.max_attempts


def test_529_is_tried_again(endpoint: respx.Route) -> None:
    endpoint.side_effect = [refusal(529, "overloaded_error"), answer(text("ok"))]
    assert ask() == "ok"
    assert endpoint.call_count == 2


def test_529_to_the_end_is_an_overload(endpoint: respx.Route) -> None:
    endpoint.return_value = refusal(529, "overloaded_error")
    with pytest.raises(Overloaded, match="on purpose"):
        ask()
    assert endpoint.call_count == QUICK.max_attempts


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (httpx.ReadTimeout("slow"), RequestTimeout),
        (httpx.ConnectTimeout("far away"), ConnectionFailed),
        (httpx.ConnectError("refused"), ConnectionFailed),
    ],
)
def test_time_outs_and_lost_connections_are_tried_again(
    endpoint: respx.Route, raised: Exception, expected: type[Exception]
) -> None:
    endpoint.side_effect = [raised, answer(text("ok"))]
    assert ask() == "ok"
    endpoint.side_effect = raised
    with pytest.raises(expected):
        ask()


def test_an_invalid_request_is_not_tried_again(endpoint: respx.Route) -> None:
    endpoint.return_value = refusal(400, "invalid_request_error")
    with pytest.raises(InvalidRequest, match="on purpose"):
        ask()
    assert endpoint.call_count == 1


def test_a_batch_of_200_keeps_its_order_and_loses_only_what_failed(endpoint: respx.Route) -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        prompt = json.loads(request.content)["messages"][0]["content"]
        if prompt == "p17":
            return refusal(400, "invalid_request_error")
        return answer(text(prompt.upper()))

    endpoint.side_effect = echo
    prompts = [f"p{i}" for i in range(200)]

    async def main() -> None:
        async with AsyncLLMProcessor(retry=QUICK, concurrency=50) as processor:
            await processor.process_batch(prompts)

    with pytest.raises(BatchFailed) as caught:
        asyncio.run(asyncio.wait_for(main(), 30))
    expected: list[str | None] = [prompt.upper() for prompt in prompts]
    expected[17] = None
    assert caught.value.results == expected
    assert isinstance(caught.value.failures[17], InvalidRequest)
    assert endpoint.call_count == 200


def test_the_client_is_the_sdks_with_its_own_retries_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
    processor = AsyncLLMProcessor()
    assert isinstance(processor.client, AsyncAnthropic)
    assert processor.client.max_retries == 0
    assert processor.client is processor.client


def test_a_client_that_is_handed_in_is_used_without_its_own_retries(endpoint: respx.Route) -> None:
    endpoint.return_value = refusal(529, "overloaded_error")
    client = AsyncAnthropic(api_key="mine", max_retries=5)
    with pytest.raises(Overloaded):
        ask(client=client, retry=RetrySpec(max_attempts=1))
    assert endpoint.call_count == 1
    assert endpoint.calls.last.request.headers["authorization"] == "Bearer mine"
