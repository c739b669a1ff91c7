"""`POST /v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from loadtests.mock.exchange import Exchange
from loadtests.mock.limit_headers import limit_headers
from reference_impl.errors import (
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    ServiceError,
    StreamBroken,
)
from reference_impl.messages import TAG_HEADER, Call, Chunk, RequestTag
from reference_impl.telemetry import RequestTrace
from simulation.models.endpoint.attempt import Attempt
from simulation.models.endpoint.faults import FAULT_HEADER, FaultOrder, StreamCut
from simulation.models.endpoint.request import parse_count, parse_messages
from simulation.models.endpoint.request_types import CountRequest
from simulation.models.endpoint.tokens import count_prompt
from simulation.models.endpoint.wire import error_event
from simulation.models.llm_endpoint import AttemptRecord, LLMEndpoint

__all__ = ["BODY_MEGABYTES", "MessagesRoutes"]

BODY_MEGABYTES: Final = 32
# Calls without a tag are numbered from here: beyond the rows of any compiled workload.
_UNTAGGED: Final = 1 << 40
_EVENT_STREAM: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


class MessagesRoutes:
    """Serves single messages from an endpoint.

    Args:
        allow_faults: honour the header `x-mock-fault`; otherwise it is refused, so that nobody is left wondering.
        wall_clock: the time that people read, for `reset` headers.
        log: told of requests that never reached the endpoint.
    """

    def __init__(
        self,
        endpoint: LLMEndpoint,
        *,
        allow_faults: bool,
        wall_clock: Callable[[], float],
        log: Callable[[AttemptRecord], None] | None,
    ) -> None:
        self._endpoint = endpoint
        self._allow_faults = allow_faults
        self._wall_clock = wall_clock
        self._log = log
        self._untagged = itertools.count(_UNTAGGED)

    def next_untagged(self) -> int:
        """A request id for a call that carries none."""
        return next(self._untagged)

    async def create(self, exchange: Exchange, account: str, version: str) -> None:
        """Answer a create, streamed or whole."""
        arrived_s = asyncio.get_running_loop().time()
        tag: RequestTag | None = None
        call: Call | None = None
        try:
            body = await exchange.body(BODY_MEGABYTES)
            tag = self._tag(exchange)
            request = parse_messages(body, version=version, beta=exchange.beta)
            order = self._fault_order(exchange)
            call = Call(
                request_id=self.next_untagged() if tag is None else tag.request_id,
                attempt=0 if tag is None else tag.attempt,
                model=request.model,
                max_tokens=request.max_tokens,
                stream=bool(request.stream),
                trace=RequestTrace(),
                tenant=account,
                size_bytes=len(body),
                body=body,
                tag=tag,
            )
            attempt = self._endpoint.admit(call, request, account=account, order=order)
        except ServiceError as error:
            if call is None:
                self._log_refusal(error, account, tag, arrived_s)
            await exchange.refuse(error, () if call is None else self._limits(call, account))
            return
        await self._serve(exchange, attempt)

    async def _serve(self, exchange: Exchange, attempt: Attempt) -> None:
        connection, task = exchange.connection, asyncio.current_task()
        assert task is not None
        lost = False

        def on_lost() -> None:
            nonlocal lost
            lost = True
            task.cancel()

        connection.on_lost = on_lost
        try:
            if attempt.call.stream:
                await self._stream(exchange, attempt)
            else:
                await self._whole(exchange, attempt)
        except asyncio.CancelledError:
            if not lost:
                connection.cut()  # the server stops: an answer that is not complete must not look so
        finally:
            connection.on_lost = None

    async def _whole(self, exchange: Exchange, attempt: Attempt) -> None:
        limits = self._limits(attempt.call, attempt.account)
        try:
            completion = await self._endpoint.deliver(attempt)
        except ConnectionFailed:
            exchange.connection.cut()
        except ServiceError as error:
            await exchange.refuse(error, limits)
        else:
            await exchange.reply(200, completion.body, limits)

    async def _stream(self, exchange: Exchange, attempt: Attempt) -> None:
        limits = self._limits(attempt.call, attempt.account)
        started = False

        async def emit(chunk: Chunk) -> None:
            nonlocal started
            if not started:
                started = True
                await exchange.start(200, _EVENT_STREAM + limits)
            await exchange.more(chunk.data)

        try:
            await self._endpoint.deliver(attempt, emit)
        except (StreamCut, ConnectionFailed):
            exchange.connection.cut()
        except StreamBroken as error:
            await exchange.more(error_event("overloaded_error", error.message, exchange.request_id))
            await exchange.end()
        except ServiceError as error:
            await exchange.refuse(error, limits)
        else:
            await exchange.end()

    async def count_tokens(self, exchange: Exchange) -> None:
        """The input tokens of a prompt, as its create would count them."""
        body = await exchange.body(BODY_MEGABYTES)
        request: CountRequest = parse_count(body, beta=exchange.beta)
        if not self._endpoint.knows(request.model):
            raise NotFound(f"model: {request.model}")
        tag = self._tag(exchange)
        tokens = 0 if tag is None else tag.input_tokens
        await exchange.reply_json({"input_tokens": tokens or count_prompt(request)})

    @staticmethod
    def _tag(exchange: Exchange) -> RequestTag | None:
        text = exchange.header(TAG_HEADER.encode())
        return RequestTag.decode(text) if text else None

    def _fault_order(self, exchange: Exchange) -> FaultOrder | None:
        text = exchange.header(FAULT_HEADER.encode())
        if not text:
            return None
        if not self._allow_faults:
            raise InvalidRequest(
                f"{FAULT_HEADER}: this server does not allow it; start it with --allow-fault-header"
            )
        return FaultOrder.decode(text)

    def _limits(self, call: Call, account: str) -> list[tuple[bytes, bytes]]:
        limits = self._endpoint.limits_of(account, call.model)
        if limits is None:
            return []
        now = asyncio.get_running_loop().time()
        return limit_headers(limits, now, datetime.fromtimestamp(self._wall_clock(), UTC))

    def _log_refusal(
        self, error: ServiceError, account: str, tag: RequestTag | None, arrived_s: float
    ) -> None:
        if self._log is None:
            return
        self._log(
            AttemptRecord(
                request_id=self.next_untagged() if tag is None else tag.request_id,
                attempt=0 if tag is None else tag.attempt,
                prompt_id=0 if tag is None else tag.prompt_id,
                account=account,
                model="",
                stream=False,
                arrived_s=arrived_s,
                endpoint_s=0.0,
                status=error.status,
                outcome=error.outcome,
            )
        )
