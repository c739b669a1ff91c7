"""Calls, profiles and runs that the endpoint's tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from reference_impl.errors import ServiceError
from reference_impl.messages import Call, Chunk, Completion, RequestTag
from reference_impl.telemetry import RequestTrace
from simulation.models.llm_endpoint import AttemptRecord, LLMEndpoint
from simulation.scenario.endpoint import EndpointProfile

MODEL = "claude-sonnet-5-5"


def profile(**changes: Any) -> EndpointProfile:
    """A provider whose times are easy to compute: 1 s to the first token, 10 tokens/s, no prefill."""
    document: dict[str, Any] = {
        "service": {
            "kind": "provider",
            "ttft_s": 1.0,
            "tokens_per_s": 10.0,
            "prefill_s_per_token": 0.0,
            "cached_prefill_s_per_token": 0.0,
        },
        "output_tokens": 20,
    }
    return EndpointProfile.model_validate({**document, **changes})


def tagged(
    row: int, *, tokens_in: int = 100, out: int = 11, stream: bool = False, **changes: Any
) -> Call:
    """A call without a body, as a virtual workload makes it."""
    return Call(
        **{
            "request_id": row,
            "model": MODEL,
            "max_tokens": 1_000_000,
            "stream": stream,
            "trace": RequestTrace(),
            "tag": RequestTag(row, 0, row, tokens_in, out),
            **changes,
        }
    )


def with_body(row: int, *, stream: bool = False, **fields: Any) -> Call:
    """A call with a Messages body and no tag."""
    document = {
        "model": MODEL,
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": "hello"}],
        "stream": stream,
        **fields,
    }
    body = msgspec.json.encode(document)
    return Call(
        request_id=row,
        model=document["model"],
        max_tokens=document["max_tokens"],
        stream=stream,
        trace=RequestTrace(),
        body=body,
    )


class Seen:
    """Collects what an endpoint emits, with the instants."""

    def __init__(self) -> None:
        self.chunks: list[tuple[float, Chunk]] = []

    async def emit(self, chunk: Chunk) -> None:
        self.chunks.append((asyncio.get_running_loop().time(), chunk))

    @property
    def instants_s(self) -> list[float]:
        return [instant for instant, _ in self.chunks]

    @property
    def data(self) -> bytes:
        return b"".join(chunk.data for _, chunk in self.chunks)


async def offered(
    endpoint: LLMEndpoint, arrivals: list[tuple[float, Call]]
) -> list[Completion | ServiceError]:
    """Send calls at their instants; what became of each, in their order."""
    loop = asyncio.get_running_loop()

    async def one(at_s: float, call: Call) -> Completion | ServiceError:
        await asyncio.sleep(at_s - loop.time())
        try:
            return await endpoint.complete(call)
        except ServiceError as error:
            return error

    tasks = [asyncio.create_task(one(at_s, call)) for at_s, call in arrivals]
    return [await task for task in tasks]


class Records(list[AttemptRecord]):
    """An observer that keeps everything."""

    @property
    def observe(self) -> Callable[[AttemptRecord], None]:
        return self.append


Main = Callable[[], Coroutine[Any, Any, Any]]
