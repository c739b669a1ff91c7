"""Calls and scripted ports for tests of whatever answers, or passes on, a call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from reference_impl.messages import Call, Chunk, Completion, Emit, Usage
from reference_impl.telemetry import RequestTrace

__all__ = ["ANSWER", "ScriptedPort", "Step", "make_call", "stage_sum_s"]

ANSWER = Completion(usage=Usage(input_tokens=10, output_tokens=5))

# One attempt of a script: what the port does with the call.
Step = Callable[[Call, Emit | None], Awaitable[Completion]]


def make_call(**fields: Any) -> Call:
    defaults: dict[str, Any] = {
        "request_id": 1,
        "model": "claude-haiku-4-5",
        "max_tokens": 64,
        "stream": False,
        "trace": RequestTrace(),
    }
    return Call(**(defaults | fields))


def stage_sum_s(trace: RequestTrace) -> float:
    """All that the processor and its slot account for."""
    return (
        trace.instance_wait_s
        + trace.retry_wait_s
        + trace.failed_attempts_s
        + trace.llm_first_token_s
        + trace.llm_stream_s
    )


class ScriptedPort:
    """A MessagesPort that takes the next step of its script at each attempt; the last step repeats."""

    def __init__(self, *steps: Step) -> None:
        self._steps: Iterator[Step] = iter(steps)
        self._step = next(self._steps)
        self._first = True
        self.started_s: list[float] = []
        self.attempts: list[int] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = False

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        if not self._first:
            self._step = next(self._steps, self._step)
        self._first = False
        self.started_s.append(asyncio.get_running_loop().time())
        self.attempts.append(call.attempt)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._step(call, emit)
        finally:
            self.in_flight -= 1

    async def aclose(self) -> None:
        self.closed = True


def answer(after_s: float = 0.0) -> Step:
    """A whole answer after a while."""

    async def step(call: Call, emit: Emit | None) -> Completion:
        await asyncio.sleep(after_s)
        return ANSWER

    return step


def fail(error: BaseException, after_s: float = 0.0) -> Step:
    """An error after a while."""

    async def step(call: Call, emit: Emit | None) -> Completion:
        await asyncio.sleep(after_s)
        raise error

    return step


def stream(*timed: float | Chunk | BaseException) -> Step:
    """Numbers are pauses in seconds, chunks are emitted, an exception is raised; then the answer is complete."""

    async def step(call: Call, emit: Emit | None) -> Completion:
        for item in timed:
            if isinstance(item, Chunk):
                assert emit is not None
                await emit(item)
            elif isinstance(item, BaseException):
                raise item
            else:
                await asyncio.sleep(item)
        return ANSWER

    return step
