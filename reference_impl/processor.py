"""AsyncLLMProcessor: one prompt, or many at once, and the calls of an instance."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import msgspec

from reference_impl.concurrency import completed_or_raise
from reference_impl.deployment import RetrySpec
from reference_impl.errors import UpstreamFailed
from reference_impl.instances.slots import Slots
from reference_impl.llm.port import MessagesPort
from reference_impl.llm.sdk import SdkMessages
from reference_impl.messages import Call, Completion, Usage
from reference_impl.overload.breaker import CircuitBreaker
from reference_impl.overload.jitter import Uniform
from reference_impl.retrying import ProcessorStatistics, RetryingMessages
from reference_impl.telemetry import RequestTrace

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

__all__ = ["AsyncLLMProcessor", "ProcessorStatistics"]


class _TextBlock(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    content: list[_TextBlock]


_message_decoder = msgspec.json.Decoder(_Message)


class AsyncLLMProcessor(RetryingMessages):
    """Answers prompts, one or many, and calls (`MessagesPort`), with retries.

    Args:
        model: for `process_single` and `process_batch`; a call names its own.
        port: where calls go; None: the Anthropic API through its SDK (key from ANTHROPIC_API_KEY). It belongs to the
            processor, which closes it.
        client: an SDK client to use instead of one made on demand; its own retries are left out (`max_retries=0`).
        concurrency: prompts in flight at once over all batches; a prompt that waits for its retry does not count.
            Calls through `complete` are bounded by whoever hands in their slot.
        max_tokens: the longest answer to a prompt, in tokens.
        retry, breaker, uniform, retry_after_max_s, price: see `RetryingMessages`.
    """

    def __init__(
        self,
        model: str = "claude-haiku-4-5",
        *,
        port: MessagesPort | None = None,
        client: AsyncAnthropic | None = None,
        retry: RetrySpec = RetrySpec(),  # noqa: B008 - immutable
        concurrency: int = 100,
        max_tokens: int = 1024,
        breaker: CircuitBreaker | None = None,
        uniform: Uniform | None = None,
        retry_after_max_s: float = 60.0,
        price: Callable[[str, Usage], float] | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(
                f"concurrency must be at least 1 (prompts in flight), not {concurrency}"
            )
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
        if port is not None and client is not None:
            raise ValueError("give either port or client: a port brings its own connections")
        # httpx2, the SDK's own default: what intercepts its requests in a user's tests then sees ours too.
        self._sdk = SdkMessages(client, backend="httpx2")
        super().__init__(
            port if port is not None else self._sdk,
            retry=retry,
            breaker=breaker,
            uniform=uniform,
            retry_after_max_s=retry_after_max_s,
            price=price,
        )
        self.model = model
        self.concurrency = concurrency
        self.max_tokens = max_tokens
        self._prompt_ids = itertools.count()
        self._slots: tuple[asyncio.AbstractEventLoop, Slots] | None = None

    @property
    def client(self) -> AsyncAnthropic:
        """The SDK's client, made when first asked for."""
        return self._sdk.client

    async def process_single(self, prompt: str) -> str:
        """The answer's text: its text blocks joined, thinking left out. Raises a ServiceError."""
        body = msgspec.json.encode(
            {
                "model": self.model,
                "max_tokens": self.max_tokens,
                "messages": [{"role": "user", "content": prompt}],
            }
        )
        call = Call(
            request_id=next(self._prompt_ids),
            model=self.model,
            max_tokens=self.max_tokens,
            stream=False,
            trace=RequestTrace(),
            body=body,
            size_bytes=len(body),
        )
        slot = self._own_slots().lease(call.trace)
        await slot.acquire()
        try:
            completion = await self.complete(call, None, slot)
        finally:
            slot.release()
        return _text_of(completion)

    @overload
    async def process_batch(
        self, prompts: Iterable[str], *, return_exceptions: Literal[False] = False
    ) -> list[str]: ...

    @overload
    async def process_batch(
        self, prompts: Iterable[str], *, return_exceptions: bool
    ) -> list[Any]: ...

    async def process_batch(
        self, prompts: Iterable[str], *, return_exceptions: bool = False
    ) -> list[Any]:
        """The answers' texts, in the order of the prompts; at most `concurrency` in flight.

        Every prompt is carried to its end, whatever happens to others. With `return_exceptions` a prompt that failed has
        its exception in its place, as in `asyncio.gather`.

        Raises:
            BatchFailed: if any failed; `.results` has the others' texts, `.failures` the errors by index.
            TypeError: `prompts` is a single text.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts is one text: give a list of them, or use process_single")

        async def settle(prompt: str) -> str | Exception:
            try:
                return await self.process_single(prompt)
            except Exception as error:  # noqa: BLE001 - handed to the caller with its index
                return error

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(settle(prompt)) for prompt in prompts]
        outcomes = [task.result() for task in tasks]
        return completed_or_raise(outcomes, return_exceptions=return_exceptions)

    async def aclose(self) -> None:
        """Close the port and, if it was made, the SDK's client."""
        await super().aclose()
        if self._port is not self._sdk:
            await self._sdk.aclose()

    async def __aenter__(self) -> AsyncLLMProcessor:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _own_slots(self) -> Slots:
        """The slots of `process_single`; they belong to one loop, a processor may outlive it."""
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:
            self._slots = loop, Slots(self.concurrency, sys.maxsize, "processor")
        return self._slots[1]


def _text_of(completion: Completion) -> str:
    """The text blocks, joined; "" for an answer without a body (virtual time)."""
    if not completion.body:
        return ""
    try:
        message = _message_decoder.decode(completion.body)
    except msgspec.DecodeError as error:
        raise UpstreamFailed(f"the answer is not a message: {error}", retryable=False) from error
    return "".join(block.text for block in message.content if block.type == "text")
